"""Pickles: data come out as they went in, and nothing else is ever called."""

import os
import pickle
import pickletools
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from magail.compat import GailRewardModel
from magail.formats import di_engine, original, pickles
from tests.toy import TWO_SIDES, Walk

DATA = {
    "numbers": [1, 2.5, True, None, "text", b"bytes", (1, [2, ()]), {"a": 1}, 2**70],
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big endian": np.arange(3, dtype=">i4"),
    "bool": np.array([True, False]),
    "bytes": np.arange(5, dtype=np.uint8),
    "half": np.ones(2, np.float16),
    "no axis": np.array(3.0),
    "empty": np.zeros((0, 4)),
    "objects": np.array([np.arange(2), None, "x"], dtype=object),
    "scalar": [np.float32(1.5), np.int64(3), np.bool_(True)],
    "ordered": OrderedDict(b=1, a=2),
    "tensor": torch.arange(6.0).reshape(2, 3),
    "view": torch.arange(10)[1::3],
    "transposed": torch.arange(6).reshape(2, 3).T,
    "one number": torch.tensor(2.0),
    "double": [torch.ones(2, dtype=torch.float64), torch.tensor([True])],
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        native = a.dtype.newbyteorder("=") == b.dtype.newbyteorder("=")  # numpy turns the bytes round as it reads
        return native and a.shape == b.shape and all(map(same, a.ravel().tolist(), b.ravel().tolist()))
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b and type(a) is type(b)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", DATA)
def test_data_come_out_as_they_went_in(name, protocol, tmp_path):
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps(DATA[name], protocol))
    assert same(pickles.load(path), DATA[name])


def test_arrays_that_python_2_wrote(tmp_path):
    content = struct.pack("<2d", 1.5, -2.0)
    escaped = "".join(f"\\x{byte:02x}" for byte in content).encode()
    path = tmp_path / "old.pkl"
    path.write_bytes(
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\ndtype\n"
        b"(S'f8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'" + escaped + b"'\ntb."
    )
    assert pickles.load(path).tolist() == [1.5, -2.0]


class Calls:
    """Runs ``function(*arguments)`` when it is unpickled."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced

    def __str__(self):
        function, arguments = self.reduced
        return f"{function.__name__}{arguments}"


def writer(marker):
    """Something that writes to the disk when its pickle is opened."""
    return Calls(os.system, f"touch {marker}")


READERS = {
    "pickles": pickles.load,
    "original": lambda path: original.read(str(path), TWO_SIDES, None),
    "DI-engine": lambda path: di_engine.read(str(path), Walk().groups, None),
    "compat": lambda path: GailRewardModel({"expert_data_path": path, "input_size": 2}, "cpu"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("place", ["alone", "in a step", "in an array"])
def test_a_pickle_that_would_write_to_the_disk_is_refused_by_name(place, reader, tmp_path):
    marker, path = tmp_path / "written", tmp_path / "expert_data.pkl"
    evil = writer(marker)
    content = {
        "alone": evil,
        "in a step": [{"obs": torch.zeros(1), "action": evil}],
        "in an array": [np.array([evil], dtype=object)],
    }[place]
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(
        ValueError, match=r"expert_data.pkl: refused, since it asks for posix.system: .* could run code"
    ):
        READERS[reader](path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists()  # so it would have


@pytest.mark.parametrize(
    "call",
    [
        Calls(eval, "1"),
        Calls(getattr, "", "join"),
        Calls(__import__, "os"),
        Calls(open, "/dev/null"),
        Calls(np.load, "x.npy"),
        Calls(torch.load, "x.pt"),
        Calls(np.dtype, "V8"),
        Calls(np.dtype, "M8[s]"),
        Path("x"),
    ],
    ids=str,
)
def test_other_names_are_refused(call, tmp_path):
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps(call))
    with pytest.raises(ValueError, match="refused, since it"):
        pickles.load(path)


def test_a_storage_is_opened_by_torchs_restricted_reader(tmp_path):
    marker, path = tmp_path / "written", tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps(Calls(torch.storage._load_from_bytes, pickle.dumps(writer(marker)))))
    with pytest.raises(ValueError, match="cannot be read"):
        pickles.load(path)
    assert not marker.exists()


class Lying(Calls):
    def __init__(self, shape, dtype, content):
        super().__init__(np._core.multiarray._reconstruct, np.ndarray, (0,), b"b")
        self.state = (1, shape, np.dtype(dtype), False, content)

    def __reduce__(self):
        return (*self.reduced, self.state)


def refused_as_damaged(content, path):
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="cannot be read as a pickle"):
        pickles.load(path)


@pytest.mark.parametrize(
    "lie",
    [
        Lying((2, 3), "f4", b"1234"),
        Lying((-1, -1), "f4", b"1234"),
        Lying((2**62, 4), "f4", b""),
        Lying((1,), "O", b"12345678"),
        Lying((2,), "O", [1]),
        Calls(np.ndarray, (1000,), "f8"),
    ],
)
def test_arrays_that_do_not_fit_what_is_stored(lie, tmp_path):
    refused_as_damaged(lie, tmp_path / "data.pkl")


@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize(
    "place", [(0, (4,), (1,)), (2, (2,), (1,)), (-1, (2,), (1,)), (2, (2,), (-1,)), (0, (2**20,), (0,))]
)
def test_tensors_that_do_not_fit_what_is_stored(place, tmp_path):
    storage = torch.zeros(3).storage()
    lie = Calls(torch._utils._rebuild_tensor_v2, storage, *place, False, OrderedDict())
    refused_as_damaged(lie, tmp_path / "data.pkl")


def test_other_files(tmp_path):
    path = tmp_path / "data.pkl"
    with pytest.raises(ValueError, match="no such file"):
        pickles.load(path)
    for content in (b"", b"hello", pickle.dumps([1, 2])[:-1], b"\x80\x05P0\n."):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"data.pkl: (cannot be read|refused)"):
            pickles.load(path)


def test_the_names_that_are_admitted_are_those_that_real_files_ask_for():
    for name in ("di_engine_cartpole.pkl", "di_engine_pendulum.pkl"):
        content = (Path(__file__).parent.parent / "golden" / name).read_bytes()
        strings, asked = [], set()
        for opcode, argument, _ in pickletools.genops(content):
            if isinstance(argument, str):
                strings.append(argument)
            if opcode.name == "STACK_GLOBAL":
                asked.add(tuple(strings[-2:]))
        assert asked
        assert asked <= set(pickles._ADMITTED)
