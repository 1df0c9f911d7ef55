"""What a run leaves in its folder: configuration, metrics, checkpoints, and the final report."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from magail.checkpoint import Checkpoints
from magail.config import build
from magail.devices import random_state, set_random_state
from magail.evaluate import Evaluator
from magail.logger import Logger, read_metrics
from magail.policy import Acting, RandomPolicy, load_policy
from magail.report import learning_curves, report_results
from magail.rollout import Player
from magail.types import BatchedEnv, Seeds


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
        print(f"Run folder: {run_dir}")
        OmegaConf.save(cfg, run_dir / "config.yaml", resolve=True)
        config = OmegaConf.to_container(cfg, resolve=True)
        self.logger: Logger = build(cfg.logger, run_dir=run_dir, total=cfg.iterations, config=config)
        self.checkpoints = Checkpoints(run_dir / "checkpoints", cfg.checkpoint.keep)
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
        self.discriminator.save(self.run_dir)
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
        """Go back to the newest checkpoint and drop what was logged after it; whether there was one."""
        state = self.checkpoints.latest()
        if state is None:
            self.logger.resume(-1)
            return False
        self.iteration, self.env_steps, self.best = state["iteration"], state["env_steps"], state["best"]
        self.started -= state["seconds"]
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.player.load_state_dict(state["player"], env.device)
        self.seeds.load_state_dict(state["seeds"])
        env.load_state_dict(state["env"], self.seeds)
        set_random_state(state["random"], self.generator.policy.fixed.device)
        self.logger.resume(self.iteration)
        return True

    def report(self, evaluator: Evaluator) -> None:
        """Play expert, random, cloned and trained policies from the same reset seeds; table, curves and film."""
        groups = self.generator.policy.groups
        policies: dict[str, Acting | None] = {
            "expert": evaluator.expert,
            "random": RandomPolicy(groups),
            "bc": load_policy(path, groups) if (path := self.run_dir / "bc.safetensors").exists() else None,
            self.cfg.algorithm: self.generator.averaged,
        }
        playing = {name: policy for name, policy in policies.items() if policy is not None}
        seeds = evaluator.seeds(self.cfg.evaluation.final_episodes)
        returns = {name: evaluator.returns(policy, seeds) for name, policy in playing.items()}
        self.logger.display.stop()  # the table takes its place
        results = report_results(self.run_dir, returns, seeds)
        if read_metrics(self.run_dir):  # who neither clones nor iterates has learned nothing that could be drawn
            self.logger.log_file("curves", learning_curves(self.run_dir))
        if self.cfg.evaluation.video_episodes:
            filmed = {name: playing[name] for name in ("expert", self.cfg.algorithm) if name in playing}
            self.logger.log_file("video", evaluator.video(filmed, self.run_dir / "video.gif"))
        scores = {
            f"final/{name}/{key}": policy[key]
            for name, policy in results["policies"].items()
            for key in ("return", "score")
        }
        self.logger.finish(scores)
        print(f"All of it is in {self.run_dir}")
