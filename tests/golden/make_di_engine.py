"""What DI-engine 0.5.3 collects of untrained policies: ``python make_di_engine.py``, in an environment of its own."""

from copy import deepcopy

import torch
from ding.entry import collect_demo_data
from ding.model import DQN, ContinuousQAC
from dizoo.classic_control.cartpole.config import cartpole_dqn_config, cartpole_dqn_create_config
from dizoo.classic_control.pendulum.config import pendulum_sac_config, pendulum_sac_create_config

CARTPOLE = (cartpole_dqn_config, cartpole_dqn_create_config)
PENDULUM = (pendulum_sac_config, pendulum_sac_create_config)

for name, configs, network, copies in (("cartpole", CARTPOLE, DQN, 2), ("pendulum", PENDULUM, ContinuousQAC, 1)):
    main_config, create_config = deepcopy(configs)
    main_config.policy.nstep = 1
    main_config.env.collector_env_num = copies
    create_config.env_manager.type = "base"
    torch.manual_seed(0)
    model = network(**main_config.policy.model)
    collect_demo_data(
        (main_config, create_config),
        seed=0,
        collect_count=40,
        model=model,
        state_dict={"model": model.state_dict()},
        expert_data_path=f"di_engine_{name}.pkl",
    )
