"""What a run leaves in its folder: configuration, metrics, checkpoints, and the final report."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from magail.checkpoint import Checkpoints
from magail.config import CONFIG, FOUND, build, flat, plain, read_config
from magail.devices import random_state, set_random_state
from magail.evaluate import Evaluator
from magail.experts import Source
from magail.files import write_whole
from magail.logger import Logger, read_metrics
from magail.report import learning_curves, report_results
from magail.rollout import Player
from magail.types import BatchedEnv, Seeds

DEMONSTRATIONS, CHECKPOINTS = "demonstrations.npz", "checkpoints"  # of a run, in its folder
CAN_CHANGE = (  # of a run that goes on; the rest is in its checkpoints and demonstrations, or was done before the first
    *("iterations", "rollout_steps", "generator", "discriminator", "bc.coefficient", "bc.evaluate_every"),
    *("threads", "device", "compile", "matmul_precision", "evaluation", "checkpoint", "logger"),
    *("env.evaluate", "env.train.workers", "env.train.step_timeout", "env.train.arguments"),
)


def begin(cfg: DictConfig, run_dir: Path) -> None:
    """Keep what a run begins with; refuse what one that is there already cannot go on with.

    Raises:
        ValueError: an option outside of `CAN_CHANGE` is another than it was, where ``auto`` is what it was found to be.
    """
    print(f"Run folder: {run_dir}")
    begun = any((run_dir / name).exists() for name in (DEMONSTRATIONS, CHECKPOINTS))
    if not begun or not (run_dir / CONFIG).exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, run_dir / CONFIG, resolve=True)
        return
    was, now = flat(plain(read_config(run_dir))), flat(plain(cfg))
    for key in sorted(was.keys() | now.keys()):
        can_change = any(f"{key}.".startswith(f"{what}.") for what in CAN_CHANGE)
        if not can_change and now.get(key) not in (was.get(key), "auto"):
            raise ValueError(
                f"the run in {run_dir} began with {key}={was.get(key)} and cannot go on with {now.get(key)}: leave "
                "that out, or train in another folder"
            )


class Run:
    """The state of a run outside its loop: where it stands, and how it is logged, stopped and taken up again.

    Its seconds are counted from ``started``, a reading of `time.perf_counter`.
    """

    def __init__(
        self,
        cfg: DictConfig,
        run_dir: Path,
        started: float,
        generator: Any,
        discriminator: Any,
        player: Player,
        seeds: Seeds,
    ) -> None:
        self.cfg, self.run_dir, self.started = cfg, run_dir, started
        self.generator, self.discriminator, self.player, self.seeds = generator, discriminator, player, seeds
        config = plain(cfg)
        self.logger: Logger = build(cfg.logger, run_dir=run_dir, total=cfg.iterations, config=config)
        self.checkpoints = Checkpoints(run_dir / CHECKPOINTS, cfg.checkpoint.keep)
        self.iteration, self.env_steps = 0, 0
        self.best = math.nan

    @property
    def progress(self) -> float:
        """How much of training is over, in [0, 1)."""
        return self.iteration / self.cfg.iterations

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def due(self, every: int) -> bool:
        """Whether the iteration under way is the last of a period of ``every``, or of training."""
        return (self.iteration + 1) % every == 0 or self.iteration + 1 == self.cfg.iterations

    def log_cloning(self, step: int, info: dict[str, float]) -> None:
        self.logger.log(-1, {"bc/step": step, **info, "seconds": self.seconds})

    def end_iteration(self, info: dict[str, float], env: BatchedEnv) -> None:
        """Log an iteration and, where one is due, write a checkpoint."""
        save = self.due(self.cfg.checkpoint.every)
        self.env_steps += self.cfg.rollout_steps * env.num_envs
        self.logger.log(self.iteration, info | {"env_steps": self.env_steps, "seconds": self.seconds})
        self._note_best(info)
        self.iteration += 1
        if save:
            self.checkpoint(env)

    def _note_best(self, info: dict[str, float]) -> None:
        value = info.get(self.cfg.checkpoint.best, math.nan)
        better = value < self.best if self.cfg.checkpoint.best_is == "min" else value > self.best
        if better or (math.isnan(self.best) and not math.isnan(value)):
            self.best = value
            self.generator.averaged.save(self.run_dir / "best.safetensors")

    def checkpoint(self, env: BatchedEnv) -> None:
        """Write all that the run needs to go on bit for bit."""
        self.generator.averaged.save(self.run_dir / "policy.safetensors")
        if self.iteration:
            self.discriminator.save(self.run_dir)  # before, it has learned nothing
        state = {
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "seconds": self.seconds,
            "best": self.best,
            "random": random_state(self.generator.policy.fixed.device),
            "env": env.state_dict(),
        }
        parts = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "player": self.player,
            "seeds": self.seeds,
        }
        self.checkpoints.save(self.iteration, state | {name: part.state_dict() for name, part in parts.items()})

    def restore(self, env: BatchedEnv) -> bool:
        """Go back to the newest checkpoint and drop what was logged after it; whether there was one.

        Raises:
            ValueError: the run's checkpoints are gone, or the newest is of other parts than these, or of more
                iterations than are asked for.
        """
        state = self.checkpoints.latest()
        if state is None and (self.run_dir / "policy.safetensors").exists():
            raise ValueError(f"{self.run_dir}: its checkpoints are gone, so it cannot go on; train in another folder")
        if state is not None:
            try:
                self._load(state, env)
            except (KeyError, TypeError, RuntimeError, ValueError) as error:
                raise ValueError(
                    f"{self.run_dir}: its newest checkpoint does not fit what is to go on from it "
                    f"({str(error).splitlines()[-1].strip()}): leave out what was not asked for when it began"
                ) from error
            if self.iteration > self.cfg.iterations:
                raise ValueError(
                    f"{self.run_dir}: {self.iteration} iterations are done, and cannot be undone: leave "
                    f"iterations={self.cfg.iterations} out, or ask for more"
                )
        self._keep_config()  # not before: what failed has changed nothing
        self.logger.resume(-1 if state is None else self.iteration)
        return state is not None

    def _keep_config(self) -> None:
        before, now = (flat(plain(cfg)) for cfg in (read_config(self.run_dir), self.cfg))
        if found := {key: now[key] for key, was in before.items() if was == "auto" != now[key]}:
            write_whole(self.run_dir / FOUND, json.dumps(found))
        OmegaConf.save(self.cfg, self.run_dir / CONFIG, resolve=True)

    def _load(self, state: dict[str, Any], env: BatchedEnv) -> None:
        self.iteration, self.env_steps, self.best = state["iteration"], state["env_steps"], state["best"]
        self.started -= state["seconds"]
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.player.load_state_dict(state["player"], env.device)
        self.seeds.load_state_dict(state["seeds"])
        env.load_state_dict(state["env"], self.seeds)
        set_random_state(state["random"], self.generator.policy.fixed.device)

    def report(self, evaluator: Evaluator) -> None:
        """Play expert, random, cloned and trained policies from the same reset seeds; table, curves and film."""
        players: dict[str, Source | None] = {"expert": self.cfg.env.expert} if self.cfg.env.expert else {}
        players["random"] = None
        if (path := self.run_dir / "bc.safetensors").exists():
            players["bc"] = str(path)
        players[self.cfg.algorithm] = str(self.run_dir / "policy.safetensors")
        results = evaluator.results(players)
        self.logger.display.stop()  # the table takes its place
        report_results(self.run_dir, results)
        if read_metrics(self.run_dir):  # who neither clones nor iterates has learned nothing that could be drawn
            self.logger.log_file("curves", learning_curves(self.run_dir))
        if self.cfg.iterations and math.isnan(self.best):
            print(f"No best.safetensors: checkpoint.best={self.cfg.checkpoint.best} was in no evaluation")
        if self.cfg.evaluation.video_episodes:
            filmed = {"expert": evaluator.expert} if evaluator.expert else {}
            filmed[self.cfg.algorithm] = self.generator.averaged
            try:
                self.logger.log_file("video", evaluator.video(filmed, self.run_dir / "video.gif"))
            except ValueError as error:  # the rest of the report does not hang on it
                print(f"No video: {error}; evaluation.video_episodes=0 asks for none")
        scores = {
            f"final/{name}/{key}": policy[key]
            for name, policy in results["policies"].items()
            for key in ("return", "score")
        }
        self.logger.finish(scores)
        print(f"All of it is in {self.run_dir}")
