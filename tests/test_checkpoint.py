import pytest
import torch

from magail import checkpoint
from magail.checkpoint import Checkpoints


def test_round_trip(tmp_path):
    state = {"x": torch.randn(3), "n": [1, 2**100, 0.5, None, "a"], "nested": {"mask": torch.tensor([True])}}
    checkpoint.save(tmp_path / "1.pt", state)
    loaded = checkpoint.load(tmp_path / "1.pt")
    assert torch.equal(loaded["x"], state["x"])
    assert loaded["n"] == state["n"]
    assert torch.equal(loaded["nested"]["mask"], state["nested"]["mask"])


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "1.pt"
    checkpoint.save(path, {"good": 1})

    class Unwritable:
        def __reduce__(self):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, {"good": 2, "bad": Unwritable()})
    assert checkpoint.load(path) == {"good": 1}
    assert list(tmp_path.iterdir()) == [path]


class Writes:
    """Unpickled, it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_a_checkpoint_is_refused_and_never_run(tmp_path):
    path, written = tmp_path / "evil.pt", tmp_path / "written"
    torch.save({"state": Writes(written)}, path)
    with pytest.raises(ValueError, match=r"evil\.pt: not a readable checkpoint"):
        checkpoint.load(path)
    assert not written.exists()


def test_damage_is_one_clear_error(tmp_path):
    path = tmp_path / "7.pt"
    checkpoint.save(path, {"x": torch.randn(1000)})
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"7\.pt: not a readable checkpoint.*remove it"):
            checkpoint.load(path)


def test_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.latest() is None
    for iteration in (1, 5, 20, 100):
        checkpoints.save(iteration, {"iteration": iteration})
    assert checkpoints.latest() == {"iteration": 100}
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["00000020.pt", "00000100.pt"]
