"""JaxMARL's simple_spread alone: random actions, no learning, vmapped over copies and jitted as one scan of 25 steps.

A step is one step of one copy, all its agents together; copies reset themselves. The scan returns every observation,
reward and done flag, so that none of their computation is dropped by the compiler.

Run it through `benchmarks.peers.run`, or from the repository root in an environment with jaxmarl_env.txt installed:

    taskset -c 0 python -m benchmarks.peers.jaxmarl_env --seconds 30
"""
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from typing import Any

from benchmarks.peers import timing

AGENTS, CYCLES, COPIES, MOVES = 3, 25, 1024, 5


def rates(seconds: float) -> list[float]:
    """Environment steps per second."""
    import jax  # both here: jaxmarl prints when it is imported, and only JSON may reach stdout
    import jaxmarl

    env = jaxmarl.make("MPE_simple_spread_v3", num_agents=AGENTS, num_landmarks=AGENTS, max_steps=CYCLES)
    step_copies = jax.vmap(env.step)

    @jax.jit
    def play(key: Any, state: Any) -> tuple[tuple[Any, Any], Any]:
        def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Any]:
            key, state = carry
            key, key_action, key_step = jax.random.split(key, 3)
            moves = jax.random.randint(key_action, (AGENTS, COPIES), 0, MOVES)
            actions = dict(zip(env.agents, moves, strict=True))
            obs, state, reward, done, _ = step_copies(jax.random.split(key_step, COPIES), state, actions)
            return (key, state), (obs, reward, done)

        return jax.lax.scan(step, (key, state), None, CYCLES)

    key = jax.random.key(0)
    _, state = jax.vmap(env.reset)(jax.random.split(key, COPIES))

    def play_on() -> int:
        nonlocal key, state
        (key, state), _ = jax.block_until_ready(play(key, state))
        return COPIES * CYCLES

    return timing.repeat(play_on, seconds)


if __name__ == "__main__":
    timing.main(
        __doc__,
        peer="JaxMARL, environment alone",
        rates=rates,
        packages=("jaxmarl", "jax", "jaxlib", "numpy"),
        setting={
            "environment": f"JaxMARL MPE_simple_spread_v3, {AGENTS} agents, max_steps {CYCLES}, discrete actions",
            "copies": COPIES,
            "policy": "random",
            "threads": 1,
        },
    )
