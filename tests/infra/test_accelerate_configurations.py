"""Laws of infra/accelerate/: each file is one that accelerate itself takes, down to the last key."""

import json
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

from components.artifacts import ROOT

FOLDER = ROOT / "infra" / "accelerate"
ENGINES = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "deepspeed_zero3": DistributedType.DEEPSPEED,
    "multi_node": DistributedType.MULTI_GPU,
}


def test_every_file_is_named_here() -> None:
    assert {file.stem for file in FOLDER.glob("*.yaml")} == ENGINES.keys()


@pytest.mark.parametrize("name", ENGINES)
def test_accelerate_reads_it_and_knows_every_key(name: str) -> None:
    file = FOLDER / f"{name}.yaml"
    assert load_config_from_file(str(file)).distributed_type == ENGINES[name]
    options = {action.dest for action in launch_command_parser()._actions}
    given = yaml.safe_load(file.read_text())
    for section, prefix in (("fsdp_config", "fsdp_"), ("deepspeed_config", "")):
        keys = set(given.get(section, {}))
        assert keys <= options and all(key.startswith(prefix) for key in keys), keys - options
    assert file.read_text().startswith("# "), "what it is for"


def test_an_unknown_key_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text((FOLDER / "ddp.yaml").read_text() + "num_gpus: 3\n")
    with pytest.raises(ValueError, match="unknown keys"):
        load_config_from_file(str(file))


def test_deepspeed_leaves_to_the_trainer_what_params_yaml_says() -> None:
    settings = yaml.safe_load((FOLDER / "deepspeed_zero3.yaml").read_text())["deepspeed_config"]
    given = json.loads((ROOT / settings["deepspeed_config_file"]).read_text())
    assert given["zero_optimization"]["stage"] == 3
    shared = ("gradient_accumulation_steps", "gradient_clipping", "train_batch_size", "train_micro_batch_size_per_gpu")
    assert all(given[name] == "auto" for name in shared)
    assert given["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"], "or no whole model could be left"
