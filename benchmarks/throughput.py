"""Steps per second of environments and of the whole training loop, beside the peers', in one run and on one core.

    python -m benchmarks.throughput --output benchmarks/results/throughput.md

writes tables with the command, the machine and the versions. The peers are installed into virtual environments of
their own (``--venvs``) on their first run, which takes a while; ``--no-peers`` leaves them out. ``--device cuda``
measures what can run there. Wall-clock times, medians of repetitions; Linux only.

A step is one step of one copy of the environment, all its agents together; an agent-step is one agent's share of it.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import supersuit
import torch

from benchmarks.loop import PARTS, PLACES, Clock, Loop, composed, measure_loop, train_briefly, wrapped
from benchmarks.peers import run as peers
from benchmarks.peers.timing import repeat
from benchmarks.products import Products
from benchmarks.tables import machine, say, table
from magail.config import build
from magail.policy import RandomPolicy

COPIES = 1024
TASKS = (
    "simple",
    "simple_spread",
    "simple_adversary",
    "simple_crypto",
    "simple_push",
    "simple_reference",
    "simple_speaker_listener",
    "simple_tag",
    "simple_world_comm",
    "simple_formation",
    "simple_line",
    "collect_treasure",
)
ENVS, AGENTS = (1, 4, 16, 64, 256, 1024, 4096), (3, 8, 16, 32, 64)
NETWORKS = [  # those of benchmarks/peers
    "generator.policy.hidden_sizes=[64,64]",
    "generator.policy.activation=tanh",
    "generator.critic.hidden_sizes=[64,64]",
]
# what imitation's GAIL does in benchmarks/peers/imitation_gail.py: no gradient penalty, no cloning term
AS_PEERS = [
    "bc.coefficient=0",
    "discriminator.gradient_penalty=0",
    "discriminator.steps=4",
    "discriminator.batch_size=512",
    *NETWORKS,
]
LOOPS = {  # rows of the table of loops
    "default recipe": [],
    "default recipe, `matmul_precision=medium`": ["matmul_precision=medium"],
    "default recipe, `matmul_precision=medium compile=true`": ["matmul_precision=medium", "compile=true"],
    "as imitation's": AS_PEERS,
    "as imitation's, `compile=true`": [*AS_PEERS, "compile=true"],
    "as imitation's, `matmul_precision=medium`": [*AS_PEERS, "matmul_precision=medium"],
    "as imitation's, `matmul_precision=medium compile=true`": [*AS_PEERS, "matmul_precision=medium", "compile=true"],
    "as MAPPO (no discriminator)": ["algorithm=rl", *NETWORKS],
}


# ---------------------------------------------------------------------------------------------------- environments


def mpe2_rate(task: str, seconds: float) -> float:
    """Steps per second of mpe2's own parallel environment, random actions."""
    cfg = composed(f"env={task}").env
    env = hydra.utils.get_method(cfg.mpe2.constructor)(**cfg.arguments)

    def play_episode() -> int:
        env.reset(seed=0)
        spaces = {agent: env.action_space(agent) for agent in env.agents}
        steps = 0
        while env.agents:
            env.step({agent: spaces[agent].sample() for agent in env.agents})
            steps += 1
        return steps

    return statistics.median(repeat(play_episode, seconds))


def supersuit_rate(seconds: float, copies: int = 16) -> float:
    """The same through SuperSuit's vector environment."""
    cfg = composed().env
    env = hydra.utils.get_method(cfg.mpe2.constructor)(**cfg.arguments)
    vector = supersuit.concat_vec_envs_v1(
        supersuit.pettingzoo_env_to_vec_env_v1(env), copies, num_cpus=1, base_class="gymnasium"
    )
    vector.reset(seed=0)
    rng, agents = np.random.default_rng(0), vector.num_envs  # of all copies

    def play() -> int:
        for _ in range(25):
            vector.step(rng.integers(5, size=agents))
        return 25 * copies

    return statistics.median(repeat(play, seconds))


def batched_rate(task: str, seconds: float, device: str, *overrides: str, compiled: bool = False) -> float:
    """Steps per second of the batched world, random actions, automatic resets included."""
    cfg = composed(f"env={task}", f"env.batched.num_envs={COPIES}", *overrides).env
    env = build(cfg.batched, device=device)
    if compiled:
        torch.compiler.reset()  # a limit on compilations of the same code counts all tasks as one
        env.compile()
    policy = RandomPolicy(env.groups)
    cpu_obs = {name: x.cpu() for name, x in env.obs.items()}
    actions = [{name: x.to(device) for name, x in policy.act(cpu_obs)[0].items()} for _ in range(8)]
    env.reset(itertools.count())

    def play() -> int:
        for t in range(25):
            env.step(actions[t % 8])
        wait(device)
        return 25 * env.num_envs

    return statistics.median(repeat(play, seconds))


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


# ------------------------------------------------------------------------------------------------------------ loops


def products_of(overrides: Sequence[str]) -> Products:
    """The matrix products of one iteration of the loop."""
    products = Products()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            with products:
                return function(*arguments, **keywords)

        return call

    with ExitStack() as stack:
        for owner, name in PLACES.values():
            stack.enter_context(wrapped(owner, name, counted))
        train_briefly([word for word in overrides if word != "compile=true"], 1)
    return products


@contextmanager
def inside_mpe2(clock: Clock) -> Iterator[None]:
    """Times mpe2's own step as ``mpe2``."""
    cfg = composed().env
    env_class = type(hydra.utils.get_method(cfg.mpe2.constructor)(**cfg.arguments))
    with wrapped(env_class, "step", functools.partial(clock.timed, "mpe2")):
        yield


def loop_on_mpe2(overrides: Sequence[str], iterations: int) -> Loop:
    """The loop on mpe2's own copies, in this process."""
    on_mpe2 = ["env.backend=mpe2", "env.mpe2.num_envs=128", "generator.minibatch_size=800"]
    return measure_loop([*overrides, *on_mpe2], iterations, inside_mpe2)


def scaled_loop(envs: int, agents: int, device: str) -> Loop:
    """The loop as imitation's with that many copies and agents; always 4 minibatches an epoch."""
    size = [f"env.batched.num_envs={envs}", f"env.arguments.N={agents}"]
    minibatch = f"generator.minibatch_size={max(1, envs * 25 // 4)}"
    return measure_loop([*AS_PEERS, *size, minibatch, f"device={device}"], 3 if envs * agents > 10_000 else 8)


# ------------------------------------------------------------------------------------------------------------ tables


def environments(seconds: float) -> str:
    """Every task: mpe2 itself, batched, compiled."""
    rows = []
    for task in TASKS:
        original = mpe2_rate(task, seconds)
        eager = batched_rate(task, seconds, "cpu")
        compiled = batched_rate(task, seconds, "cpu", compiled=True)
        say(f"{task}: {original:,.0f} {eager:,.0f} {compiled:,.0f}")
        ratios = [f"{eager / original:,.0f}", f"{compiled / original:,.0f}"]
        rows.append([task, f"{original:,.0f}", f"{eager:,.0f}", f"{compiled:,.0f}", *ratios])
    vector = supersuit_rate(seconds)
    head = ["task", "mpe2", f"batched ({COPIES:,} copies)", "compiled", "batched / mpe2", "compiled / mpe2"]
    text = f"simple_spread through SuperSuit's vector environment (16 copies): {vector:,.0f} steps/s."
    return f"{table(head, rows)}\n\n{text}"


def loops(iterations: int) -> tuple[str, dict[str, Loop]]:
    """Where an iteration's time goes, and the matrix-product limit of the same networks with the same kernels."""
    rows, measured = [], {}
    for name, overrides in LOOPS.items():
        loop = measured[name] = measure_loop(overrides, iterations)
        products = products_of(overrides)
        limit = products.seconds()  # the precision is still the one just trained with
        parts = [f"{1e3 * loop.part(part):.1f}" for part in PARTS]
        share = f"{limit / loop.iteration:.0%}"
        say(f"{name}: {loop.steps_per_second:,.0f} steps/s, products {share}")
        speed = f"{products.flops / limit / 1e9:.0f}"
        rows.append([name, f"{loop.steps_per_second:,.0f}", *parts, f"{1e3 * limit:.1f}", share, speed])
    torch.set_float32_matmul_precision("highest")
    head = ["loop", "steps/s", *(f"{part}, ms" for part in PARTS), "products alone, ms", "share", "GFLOP/s"]
    return table(head, rows), measured


def on_mpe2(iterations: int) -> str:
    """How much of training on mpe2 is mpe2."""
    rows = []
    for name in ("default recipe", "as imitation's"):
        loop = loop_on_mpe2(LOOPS[name], iterations)
        parts = [f"{loop.part(part) / loop.iteration:.0%}" for part in (*PARTS, "mpe2")]
        say(f"{name} on mpe2: {loop.steps_per_second:,.0f} steps/s, mpe2 {parts[-1]}")
        rows.append([name, f"{loop.steps_per_second:,.0f}", *parts])
    return table(["loop on mpe2", "steps/s", *PARTS, "of it mpe2's own step"], rows)


def threads(iterations: int) -> str:
    """Whether more threads help; without the pin to one core."""
    rows = []
    for name, count in itertools.product(("default recipe", "as imitation's"), (1, os.cpu_count() or 1)):
        loop = measure_loop([*LOOPS[name], f"threads={count}"], iterations)
        say(f"{name}, {count} threads: {loop.steps_per_second:,.0f} steps/s")
        rows.append([name, str(count), f"{loop.steps_per_second:,.0f}"])
    torch.set_num_threads(1)
    return table(["loop", "threads", "steps/s"], rows)


def growth(seconds: float, device: str) -> str:
    """Nanoseconds of an agent-step against copies and agents, world alone and whole loop."""
    rows = []
    for agents in AGENTS:
        cells = []
        for envs in ENVS:
            size = [f"env.batched.num_envs={envs}", f"env.arguments.N={agents}"]
            rate = batched_rate("simple_spread", seconds, device, *size)
            cells.append(f"{1e9 / (rate * agents):,.0f}")
        say(f"world alone, {agents} agents, ns an agent-step: {cells}")
        rows.append([str(agents), *cells])
    copies = [f"{envs:,}" for envs in ENVS]
    alone = table(["agents", *copies], rows)

    def microseconds(envs: int, agents: int) -> str:
        loop = scaled_loop(envs, agents, device)
        cell = f"{1e6 / (loop.steps_per_second * agents):,.1f}"
        say(f"loop, {envs} copies, {agents} agents, us an agent-step: {cell}")
        return cell

    by_copies = table(["copies, 3 agents", *copies], [["us", *(microseconds(envs, 3) for envs in ENVS)]])
    head = ["agents, 64 copies", *map(str, AGENTS)]
    by_agents = table(head, [["us", *(microseconds(64, agents) for agents in AGENTS)]])
    return (
        f"The world alone (eager), nanoseconds an agent-step, by agents and copies:\n\n{alone}\n\n"
        "The whole loop (as imitation's, 4 minibatches an epoch), microseconds an agent-step:\n\n"
        f"{by_copies}\n\n{by_agents}"
    )


def compared(own: dict[str, Loop], spread: tuple[float, float], venvs: Path, seconds: float) -> str:
    """The peers, each beside what does the same here."""
    eager, compiled = spread
    loop = own["as imitation's"]
    fastest = max((x for name, x in own.items() if name.startswith("as imitation's")), key=lambda x: x.steps_per_second)
    mappo = own["as MAPPO (no discriminator)"]
    here = {
        "imitation_gail": (loop.steps_per_second, fastest.steps_per_second),
        "benchmarl_mappo": (mappo.steps_per_second, mappo.steps_per_second),
        "vmas_env": (eager, compiled),
        "jaxmarl_env": (eager, compiled),
    }
    rows = []
    for name, (plain, best) in here.items():
        result = peers.measure(name, venvs, seconds)
        rate = result["steps_per_second"]
        spread_of = f"{min(result['repetitions']):,.0f} to {max(result['repetitions']):,.0f}"
        versions = ", ".join(f"{key} {value}" for key, value in result["versions"].items())
        say(f"{result['peer']}: {rate:,.0f}")
        ratios = [f"{plain / rate:.1f}", f"{best / rate:.1f}"]
        rows.append([result["peer"], f"{rate:,.0f}", spread_of, *ratios, versions])
    head = ["peer", "steps/s", "of 5 repetitions", "magail / peer", "magail's fastest / peer", "versions"]
    return table(head, rows)


def stay_on(cores: set[int]) -> None:
    os.sched_setaffinity(0, cores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--seconds", type=float, default=5.0, help="time to measure each environment for")
    parser.add_argument("--iterations", type=int, default=25, help="iterations to measure each loop for")
    parser.add_argument("--venvs", type=Path, default=peers.ROOT / "build" / "peers", help="the peers' environments")
    parser.add_argument("--no-peers", action="store_true", help="leave the peers out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: growth alone, there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    command = "python -m " + " ".join(["benchmarks.throughput", *sys.argv[1:]])
    sections = [f"# Throughput\n\n```\n{command}\n```\n\n{machine()}."]

    def section(title: str, text: str) -> None:  # written as it comes: the whole takes half an hour
        sections.append(f"## {title}\n\n{text}")
        arguments.output.write_text("\n\n".join(sections) + "\n")

    if arguments.device == "cuda":
        section("How cost grows", growth(arguments.seconds / 5, "cuda"))
        return
    cores = os.sched_getaffinity(0)
    stay_on({max(cores)})
    section("Environments, steps/s", environments(arguments.seconds))
    text, own = loops(arguments.iterations)
    section("The loop", text)
    section("Training on mpe2", on_mpe2(max(3, arguments.iterations // 4)))
    if not arguments.no_peers:
        rates = [batched_rate("simple_spread", arguments.seconds, "cpu", compiled=flag) for flag in (False, True)]
        section("Peers", compared(own, (rates[0], rates[1]), arguments.venvs, 6 * arguments.seconds))
    section("How cost grows", growth(arguments.seconds / 5, "cpu"))
    stay_on(cores)
    section("Threads", threads(arguments.iterations))


if __name__ == "__main__":
    main()
