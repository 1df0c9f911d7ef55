import inspect
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, get_origin, get_type_hints

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from magail.config import EvaluateConfig, RecordConfig, TrainConfig, check
from magail.evaluate import judge
from magail.files import locate
from magail.record import check_overrides, write

CONF = Path(__file__).parent.parent / "conf"
INJECTED = {  # what `magail` passes besides the YAML, by the target's beginning
    "magail.generators": {"groups"},
    "magail.discriminators.discriminator": {"groups", "demonstrations", "held_out"},
    "magail.discriminators.learned": {"groups", "demonstrations", "held_out"},
    "magail.discriminators.losses": {"logits", "target"},
    "magail.discriminators.rewards": {"logits"},
    "magail.discriminators.priors": {"groups"},
    "magail.policy.Policy": {"groups"},
    "magail.networks.Critic": {"groups"},
    "magail.generators.q_networks": {"groups"},
    "magail.generators.iq.SoftQ": {"policy", "temperature", "mixer"},
    "magail.logger.Logger": {"run_dir", "total", "config"},
    "magail_envs.particle.symmetries.interchangeable": {"demonstrations"},
    "magail_envs.particle.symmetries.landmarks_of_agents": {"demonstrations"},
    "magail_envs.particle.symmetries.languages": {"demonstrations"},
    "magail_envs.particle.symmetries.one_time_pad": {"demonstrations"},
    "magail.formats": {"groups", "demonstrations", "output"},
}


def composed(*overrides, name="config"):
    with initialize_config_module("magail_conf", version_base="1.3"):
        return compose(name, list(overrides))


def choices(group):
    return sorted(
        path.stem for path in (CONF / group).glob("*.yaml") if path.stem not in ("base", "pettingzoo", "particle")
    )


def passed_on(target):
    """By name, whose options the dictionaries are that a class passes on."""
    hints = get_type_hints(target.__init__, include_extras=True) if inspect.isclass(target) else {}
    return {name: hint.__metadata__[0] for name, hint in hints.items() if get_origin(hint) is Annotated}


def parts(cfg):
    """Every node with a `_target_`, and the dictionaries that a part passes on."""
    for value in cfg.values():
        if isinstance(value, DictConfig):
            yield from parts(value)
    if "_target_" in cfg:
        target = cfg._target_
        yield target, {str(key) for key in cfg if not str(key).startswith("_")}
        for key, other in passed_on(get_object(target)).items():
            yield f"{other.__module__}.{other.__qualname__}", set(map(str, cfg[key]))


def parameters_of(target):
    """By name, those of its base class too where it passes ``**options`` on."""
    parameters = dict(inspect.signature(target).parameters)
    if "options" not in parameters:
        return parameters
    del parameters["options"]
    return parameters_of(target.__base__) | parameters


ALL = [f"{group}={choice}" for group in ("generator", "discriminator", "logger", "env") for choice in choices(group)]


ALL += [f"{group}={choice}" for group in ("from", "to") for choice in choices(group)]


@pytest.mark.parametrize("override", ALL)
def test_yaml_keys_are_the_arguments_of_what_they_configure(override):
    converts = {"name": "record"} if override.startswith(("from", "to")) else {}
    cfg = composed(override, *["from.path=x"] * override.startswith("from"), **converts)
    for target, keys in parts(cfg[override.split("=")[0]]):
        parameters = parameters_of(get_object(target))
        given = set().union(*(names for start, names in INJECTED.items() if target.startswith(start)))
        assert keys <= set(parameters) - given, target
        required = {name for name, p in parameters.items() if p.default is p.empty}
        assert required <= keys | given, target


def test_the_schemas_are_the_yaml_files():
    def compare(schema, cfg):
        hints = get_type_hints(schema)
        assert {field.name for field in fields(schema)} == set(cfg)
        for name, kind in hints.items():
            if is_dataclass(kind):
                compare(kind, cfg[name])

    compare(TrainConfig, composed())
    compare(EvaluateConfig, composed(name="evaluate"))
    record = composed(name="record")
    compare(RecordConfig, {key: record[key] for key in record if key != "from"})


EXPLAINED = sorted(path for path in CONF.rglob("*.yaml") if path.parent.name != "env")  # those have a test of their own


@pytest.mark.parametrize("path", EXPLAINED, ids=lambda path: path.relative_to(CONF).as_posix())
def test_every_key_is_explained(path):
    """A key has a comment on its line, or in the lines right above it; the file has one at its top."""
    lines = path.read_text().splitlines()
    assert lines[0].startswith("#")
    above_defaults = False
    for number, line in enumerate(lines):
        key = re.match(r"\s*(?:- )?(?:override )?/?([\w_]+):", line)
        if line.startswith("defaults:") or line.startswith("hydra:"):
            above_defaults = True
        elif re.match(r"\w", line):
            above_defaults = False
        if not key or above_defaults or key[1].startswith("_"):
            continue
        explained = "#" in line or lines[number - 1].lstrip().startswith("#")
        parent = line.rstrip().endswith(":") and not explained
        same_as_above = re.search(r"\$\{", line)  # an interpolation explains itself by what it points to
        assert explained or parent or same_as_above, f"{path.name}:{number + 1}: {line.strip()}"


@pytest.mark.parametrize("algorithm", choices("algorithm"))
def test_every_algorithm_passes_the_check(algorithm):
    check(composed(f"algorithm={algorithm}"))


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_experiment_passes_the_check(experiment):
    check(composed(f"experiment={experiment}"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+sede=1"], "sede"),
        (["+bc.step=1"], "step"),
        (["seed=many"], "many"),
        (["seed=-1"], "seed=-1 must be from 0 to 1e"),
        (["seed=99999999999"], "seed=99999999999 must be from 0 to 1e"),
        (["evaluation.seed=99999999999"], "evaluation.seed=99999999999 must be from 0 to 1e"),
        (["discriminator.absorbing=false", "generator.absorbing=true"], "discriminator.absorbing=false never learned"),
        (["~env.train"], r"env has no train: begin its file with `defaults: \[pettingzoo\]`"),
        (["iterations=-1"], "iterations=-1 must be at least 0"),
        (["evaluation.final_episodes=1"], "at least 2"),
        (["demonstrations.count=0", "start_from_demonstrations=0"], "imitation needs demonstrations.*algorithm=rl"),
        (["algorithm=rl", "discriminator=centralized", "demonstrations.count=5"], "no other discriminator"),
        (["demonstrations.every=20", "generator.policy.recurrent=8"], "steps that do not follow each other"),
        (["demonstrations.every=20", "algorithm=dac", "generator.n_step=3"], "steps that do not follow each other"),
        (["demonstrations.every=0"], "demonstrations.every=0 must be"),
        (["algorithm=rl", "start_from_demonstrations=0.5"], "start_from_demonstrations needs demonstrations"),
        (["checkpoint.best_is=good"], "must be min or max"),
        (["symmetries=some"], "symmetries=some must be auto, true, false or the number"),
        (
            ["symmetries=true", "env=cartpole"],
            "symmetries=True, but env.symmetries of cartpole names none: leave symmetries=auto",
        ),
        (["bc.steps=-1"], "bc.steps=-1 must be auto or an integer of at least 0"),
        (["bc.steps=2.5"], "bc.steps=2.5 must be auto or an integer of at least 0"),
        (["bc.weight_decay=-1"], "bc.weight_decay=-1 must be auto or a number of at least 0"),
        (["bc.weight_decay=some"], "bc.weight_decay=some must be auto or a number of at least 0"),
        (["bc.learning_rate=-1"], "bc.learning_rate=-1 must be auto or a number of at least 0"),
        (["demonstrations.held_out=1"], "held_out=1.0 must be from 0 to 0.9"),
        (["env.backend=vmas"], "vmas"),
        (["generator.learning_rate=fast"], "PPO: learning_rate=fast must be a number"),
        (["generator.policy.hidden_sizes=64"], "Policy: hidden_sizes=64 must be a list, each an integer"),
        (["generator.policy.share_parameters=no"], "Policy: share_parameters=no must be true or false"),
        (["discriminator.prior.dropout=null"], "Decentralized: dropout=null must be a number"),
        (["env.batched.num_envs=1.5"], "SimpleSpread: num_envs=1.5 must be an integer"),
        (["algorithm=iq", "generator.q_network.hidden_sizes=[a]"], "SoftQ: hidden_sizes=\\['a'\\] must be a list"),
        (["initial_policy={agent: [a, b]}"], "initial_policy: agent begins with one policy; name a run folder"),
        (["algorithm=rl", "demonstrations.path=x.npz"], "demonstrations.path=x.npz is not read"),
        (["algorithm=rl", "reward.checkpoint=x"], "reward.checkpoint is not read without reward=learned"),
        (["discriminator=none"], "nothing to learn from.*algorithm=sqil"),
        (["algorithm=sqil", "generator.expert_fraction=0"], "nothing to learn from"),
        (["algorithm=bc", "iterations=3"], "algorithm=bc is cloning alone"),
        (["generator=iq"], "learns without rewards: choose algorithm=iq"),
        (["algorithm=rl", "generator=dagger"], "learns without rewards"),
        (["algorithm=sqil", "generator.expert_reward=null"], "nothing to learn from"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_it_starts(overrides, message):
    with pytest.raises(ValueError, match=message):
        check(composed(*overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.final_episodes=1"], "evaluation.final_episodes=1 must be at least 2"),
        (["evaluation.seed=-1"], "evaluation.seed=-1 must be from 0 to 1e"),
        (["evaluation.most_likely=maybe"], "evaluation.most_likely: Value 'maybe'"),
        (["checkpoint=[]"], "nobody is named who plays"),
        (["checkpoint=math.pi"], "math.pi: not a function but 3.14"),
        (["checkpoint=pkg://no_such/x.safetensors"], "No module named 'no_such'"),
        (["checkpoint=pkg:///x.safetensors"], "pkg:///x.safetensors: Empty module name"),
    ],
)
def test_what_cannot_be_judged_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        judge(composed("env=simple_push", "env.mpe2.workers=0", *overrides, name="evaluate"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["episodes=0"], "episodes=0 must be at least 1"),
        (["seed=-1"], "seed=-1 must be from 0 to 1e"),
        (["most_likely=maybe"], "most_likely: Value 'maybe'"),
        (["output=2024"], "2024: demonstrations are saved as .npz"),
        (["to=minari", "output=x.npz"], "output=x.npz: Minari's ids look like"),
    ],
)
def test_what_cannot_be_recorded_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        write(composed("env=simple_push", "env.mpe2.workers=0", "episodes=1", *overrides, name="record"))


@pytest.mark.parametrize("option", ["checkpoint=y", "episodes=100", "seed=0", "most_likely=false"])
def test_what_says_how_to_play_is_refused_where_a_file_is_converted(option):
    with pytest.raises(ValueError, match=f"from= converts a file, and {option.split('=')[0]}= says how to play"):
        check_overrides(["from=npz", "from.path=x.npz", option])
    check_overrides(["env=simple_push", option])
    check_overrides(["env=simple_push", "from=npz", "from.path=x.npz", "output=y.npz"])


def test_values_have_the_types_of_the_schema():
    cfg = composed("compile=no", "demonstrations.path=2024")
    check(cfg)
    assert cfg.compile is False
    assert cfg.demonstrations.path == "2024"


def test_a_configuration_of_another_version_says_so():
    cfg = composed()
    OmegaConf.set_struct(cfg, False)
    del cfg.threads
    with pytest.raises(ValueError, match="the configuration has no threads"):
        check(cfg)


def test_a_misspelt_override_is_refused_by_hydra():
    with pytest.raises(Exception, match="sede"):
        composed("sede=1")


def test_shipped_files_are_found_in_their_package():
    assert locate("pkg://magail_conf/config.yaml").read_text() == (CONF / "config.yaml").read_text()
    assert locate("some/file") == Path("some/file")


def test_a_config_stays_itself_when_resolved_and_read_again(tmp_path):
    cfg = composed()
    OmegaConf.save(cfg, tmp_path / "config.yaml", resolve=True)
    again = OmegaConf.load(tmp_path / "config.yaml")
    assert OmegaConf.to_container(again) == OmegaConf.to_container(cfg, resolve=True)
    check(again)
