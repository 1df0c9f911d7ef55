"""Train: ``python -m magail.train env=simple_spread``.

    python -m magail.train env=simple_tag discriminator=centralized      another task and prior
    python -m magail.train algorithm=bc demonstrations.count=5           behavioural cloning alone, 5 demonstrations
    python -m magail.train algorithm=rl env=simple_push                  train an expert on the environment's reward
    python -m magail.train -m seed=0,1,2 discriminator=decentralized,centralized      a sweep
    python -m magail.train resume=outputs/...                            go on with a run that was stopped

Every key is explained in conf/; ``--cfg job`` prints them all. The loop is `train`.
"""

from __future__ import annotations

import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from magail.config import build, check, one_clear_message, plain, read_config
from magail.demonstrations import Demonstrations
from magail.devices import check_device, compiler_works, on_device, sensible_threads
from magail.evaluate import Evaluator
from magail.generators.bc import BehavioralCloning, held_out_info
from magail.opponents import against
from magail.policy import Policy
from magail.record import record_expert
from magail.rollout import Player, collect
from magail.run import DEMONSTRATIONS, Run, begin
from magail.symmetries import RandomViews, in_all_views, made_for, shown, what_is_shared
from magail.types import BatchedEnv, Seeds, Symmetries


def train(cfg: DictConfig, run_dir: Path) -> None:
    """Train as ``cfg`` says, in ``run_dir``, going on from its newest checkpoint where there is one; then report."""
    started = time.perf_counter()
    check(cfg)
    begin(cfg, run_dir)
    torch.set_num_threads(cfg.threads or sensible_threads())
    torch.set_float32_matmul_precision(cfg.matmul_precision)
    torch.set_flush_denormal(True)  # moments of units that died fade below 1e-38, and updates take twice as long
    torch.manual_seed(cfg.seed)
    device = check_device(cfg.device)
    with (
        closing(on_device(against(build(cfg.env.train), cfg.opponents, cfg.seed), device)) as env,
        closing(Evaluator(cfg)) as evaluator,
    ):
        evaluator.check(env.groups)
        demonstrations, held_out = get_demonstrations(cfg, evaluator.env, run_dir, device)
        settle_box(cfg, demonstrations)
        env, demonstrations, views = with_symmetries(cfg, env, demonstrations)
        settle_activation(cfg)
        torch.manual_seed(cfg.seed)  # also where demonstrations were recorded before the run was stopped
        with device:
            generator = build(cfg.generator, groups=env.groups)
        generator.averaged.views = None if generator.policy.recurrent else views
        parts = {"groups": env.groups, "demonstrations": demonstrations, "held_out": held_out}
        with device:
            discriminator = build(cfg.discriminator, **parts)
        if cfg.compile and compiler_works(device):
            env.compile()
            generator.compile()  # not the discriminator: a gradient penalty's second derivatives cannot be compiled
        cloning = demonstrations and BehavioralCloning(generator.policy, demonstrations, held_out, **cfg.bc)
        if cloning:
            cfg.bc.update(cloning.options)  # what auto came to
        starts = demonstrations.known_seeds() if demonstrations else []
        seeds = Seeds(cfg.seed, starts, cfg.start_from_demonstrations)
        player = Player(generator.policy)
        run = Run(cfg, run_dir, started, generator=generator, discriminator=discriminator, player=player, seeds=seeds)

        with run.logger:
            if not run.restore(env):
                if cfg.initial_policy:
                    generator.policy.start_from(cfg.initial_policy)
                if cloning:
                    cloning.fit(run.log_cloning)
                    generator.averaged.save(run_dir / "bc.safetensors")
                env.reset(seeds)
                run.checkpoint(env)

            while run.iteration < cfg.iterations:
                rollout, info = collect(env, player, cfg.rollout_steps)
                info |= discriminator.update(rollout, demonstrations, generator.policy)
                cloning_term = cloning.term(run.progress) if cloning else None
                info |= generator.update(rollout, discriminator.reward, run.progress, cloning_term, demonstrations)
                if run.due(cfg.evaluation.every):
                    info |= evaluator.learning_curve(generator.averaged)
                    info |= held_out_info(generator.averaged, held_out) | discriminator.report(rollout)
                run.end_iteration(info, env)

            run.report(evaluator)


def get_demonstrations(
    cfg: DictConfig, env: BatchedEnv, run_dir: Path, device: torch.device
) -> tuple[Demonstrations | None, Demonstrations | None]:
    """Demonstrations to learn from and held-out ones, either None where there are none; kept in the run folder."""
    options, kept = cfg.demonstrations, run_dir / DEMONSTRATIONS
    if not options.count:
        return None, None
    if kept.exists():
        demonstrations = Demonstrations.load(kept, env.groups)
    else:
        if options.path:
            demonstrations = Demonstrations.load(options.path, env.groups).take(options.count, cfg.seed)
            tell_of_another_environment(options.path, demonstrations.metadata.get("env"), plain(cfg.env.evaluate))
        else:
            demonstrations = record_expert(cfg.env, env, options.count, cfg.seed, options.most_likely)
        demonstrations.save(kept)
        mean = demonstrations.returns().mean().item()
        print(f"{len(demonstrations)} demonstrations, {demonstrations.num_steps} steps, mean return {mean:.2f}")
    if options.every > 1:
        demonstrations = demonstrations.subsample(options.every, cfg.seed)
    demonstrations = demonstrations.to(device)
    if int(options.held_out * len(demonstrations)) == 0:
        return demonstrations, None
    return demonstrations.split(options.held_out, cfg.seed)


def tell_of_another_environment(path: str, recorded_in: Any, trained_in: dict[str, Any]) -> None:
    """Print where the file's own note of its environment differs: spaces may agree where worlds do not."""
    for key in ("constructor", "arguments"):
        if isinstance(recorded_in, dict) and recorded_in.get(key) != trained_in.get(key):
            print(f"note: {path} was recorded with {key} {recorded_in.get(key)}, but env has {trained_in.get(key)}")


def with_symmetries(
    cfg: DictConfig, env: BatchedEnv, demonstrations: Demonstrations | None
) -> tuple[BatchedEnv, Demonstrations | None, Symmetries | None]:
    """Both from all views that ``cfg.symmetries`` says, and these views.

    ``auto`` becomes, also in ``cfg`` (and so in the run's config.yaml), what the demonstrations say.

    Raises:
        ValueError: ``cfg.symmetries`` is the number of a convention that there is not, or what the environment's
            configuration names makes no views of its agents.
    """
    if cfg.symmetries == "auto" and (demonstrations is None or cfg.env.symmetries is None):
        cfg.symmetries = False
    if cfg.symmetries is False:
        return env, demonstrations, None
    views = made_for(env, build(cfg.env.symmetries), "env.symmetries")
    conventions: list[Symmetries] = []
    if demonstrations is not None and cfg.env.conventions is not None and cfg.symmetries is not True:
        made = build(cfg.env.conventions, demonstrations=demonstrations.transitions)
        if not isinstance(made, list):
            raise ValueError(f"env.conventions: a list of magail.types.Symmetries is wanted, not {made!r:.80}")
        conventions = [made_for(env, convention, "env.conventions") for convention in made]
    if demonstrations is not None and cfg.symmetries == "auto":
        architecture = dict(cfg.generator.policy)
        if architecture.get("activation") == "auto":
            architecture["activation"] = "tanh"  # asking these takes half the time
        new_policy = partial(Policy, env.groups, **architecture)
        print("Whether the expert shares the symmetries of its world is asked of clones, by cross-validation")
        cfg.symmetries = what_is_shared(demonstrations, views, conventions, new_policy, cfg.seed, **cfg.bc)
        print(f"symmetries=auto came to {str(cfg.symmetries).lower()}")
    for symmetries in shown(cfg.symmetries, views, conventions):
        env = RandomViews(env, symmetries)
        demonstrations = demonstrations and in_all_views(demonstrations, symmetries)
    return env, demonstrations, views


def settle_box(cfg: DictConfig, demonstrations: Demonstrations | None) -> None:
    """An ``auto`` of the actors becomes, also in ``cfg``, clipped where demonstrations lie on bounds, else gaussian.

    What was clipped, or presses against the bounds, has a share of its probability right there, which no Gaussian has.
    """
    if OmegaConf.select(cfg, "generator.policy.box") == "auto":
        cfg.generator.policy.box = "clipped" if demonstrations and demonstrations.on_bounds() else "gaussian"


def settle_activation(cfg: DictConfig) -> None:
    """An ``auto`` of the actors becomes, also in ``cfg``, gated where they learn from several views, tanh elsewhere."""
    if OmegaConf.select(cfg, "generator.policy.activation") == "auto":
        cfg.generator.policy.activation = "tanh" if cfg.symmetries is False else "gated"


def with_resume(argv: list[str]) -> list[str]:
    """Turn ``resume=RUN_FOLDER`` into Hydra's own options: that folder's resolved config, run in that folder.

    Raises:
        ValueError: the folder is not a run's.
    """
    folders = [Path(word.removeprefix("resume=")) for word in argv if word.startswith("resume=")]
    if not folders:
        return argv
    folder = folders[-1].resolve()
    cfg = read_config(folder)
    words = [word for word in argv[1:] if not word.startswith("resume=")]
    for word in words:
        key, _, value = word.partition("=")
        if isinstance(cfg.get(key), DictConfig) and not value.startswith("{"):
            raise ValueError(f"{word}: a run keeps its {key}, whose options are in its config.yaml; leave that out")
    options = ["--config-path", str(folder), "--config-name", "config"]
    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [argv[0], *options, *words, f"hydra.run.dir='{quoted}'", "hydra.output_subdir=null"]


FAILED: list[str] = []  # the runs of a sweep that it went on without


@hydra.main(version_base="1.3", config_path="pkg://magail_conf", config_name="config")
def hydra_main(cfg: DictConfig) -> None:
    hydra_cfg = HydraConfig.get()
    run_dir = Path(hydra_cfg.runtime.output_dir)
    try:
        with one_clear_message():
            train(cfg, run_dir)
    except KeyboardInterrupt:
        sys.exit(f"stopped; go on with: python -m magail.train resume={run_dir}")
    except SystemExit as error:
        if hydra_cfg.mode != RunMode.MULTIRUN:
            raise
        FAILED.append(f"{run_dir}: {error}")
        print(error)


def main() -> None:
    with one_clear_message():
        sys.argv = with_resume(sys.argv)
    hydra_main()
    if FAILED:
        sys.exit("\n".join(["these runs of the sweep failed:", *FAILED]))


if __name__ == "__main__":
    main()
