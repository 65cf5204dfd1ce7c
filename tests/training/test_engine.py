"""The DeepSpeed configuration: file and settings become one, and where they contradict each other both are
named."""

import json

import pytest
import torch
from deepspeed.accelerator import get_accelerator

from pipeline.config import Config
from pipeline.training.engine import check_hardware, deepspeed_config, learning_rate_factor


@pytest.fixture
def merge(tmp_path):
    def merge(from_file, world_size=2, dtype=torch.float32, **training):
        file = tmp_path / "deepspeed.json"
        file.write_text(from_file if isinstance(from_file, str) else json.dumps(from_file))
        settings = Config(deepspeed=str(file))
        for name, value in training.items():
            setattr(
                settings.training if hasattr(settings.training, name) else settings.selection, name, value
            )
        return deepspeed_config(settings, world_size, dtype)

    return merge


def test_batch_sizes_and_optimizer_follow_from_the_settings(merge):
    merged = merge(
        {"zero_optimization": {"stage": 2}},
        betas=(0.8, 0.9),
        eps=1e-6,
        micro_batch_size=2,
        dtype=torch.bfloat16,
    )
    assert (merged["train_micro_batch_size_per_gpu"], merged["gradient_accumulation_steps"]) == (2, 2)
    assert (
        merged["optimizer"]["params"]["betas"] == [0.8, 0.9] and merged["optimizer"]["params"]["eps"] == 1e-6
    )
    assert merged["bf16"]["enabled"] and merged["zero_optimization"] == {"stage": 2}


def test_auto_values_and_equal_values_are_no_contradiction(merge):
    merged = merge(
        {"train_micro_batch_size_per_gpu": "auto", "gradient_clipping": 1.0, "bf16": {"enabled": "auto"}}
    )
    assert merged["train_micro_batch_size_per_gpu"] == 4 and merged["gradient_clipping"] == 1.0


@pytest.mark.parametrize(
    "from_file, words",
    [
        ({"train_micro_batch_size_per_gpu": 3}, ["train_micro_batch_size_per_gpu = 3", "settings say 4"]),
        ({"gradient_clipping": 0.5}, ["gradient_clipping = 0.5", "settings say 1.0"]),
        (
            {"optimizer": {"type": "SGD"}},
            ["optimizer.type = 'SGD'", "selection.geometry = update", "set selection.geometry = identity"],
        ),
        (
            {"optimizer": {"type": "Lion"}},
            ["optimizer.type = 'Lion'", "no second moments", "set selection.geometry = identity"],
        ),
        (
            {"optimizer": {"type": "Muon"}},
            ["optimizer.type = 'Muon'", "no second moments", "set selection.geometry = identity"],
        ),
        ({"optimizer": {"type": "Adam"}}, ["optimizer.type = 'Adam'", "settings say 'AdamW'"]),
        ({"optimizer": {"params": {"lr": 0.5}}}, ["optimizer.params.lr = 0.5", "settings say 0.0002"]),
        ({"bf16": {"enabled": True}}, ["bf16.enabled = True", "settings say False"]),
        ({"train_batch_size": 8}, ["'train_batch_size'", "selection.* and training.*"]),
        (
            {"checkpoint": {"writer": {"type": "FAST", "decoupled": True}}},
            ["'checkpoint.writer'", "remove it"],
        ),
        ({"datastates_ckpt": {"host_cache_size": 2}}, ["'datastates_ckpt'", "remove it"]),
        ({"scheduler": {"type": "WarmupLR"}}, ["'scheduler'", "training.*"]),
        ({"fp16": {"enabled": True}}, ["fp16.enabled = True", "settings say False"]),
        (
            {"zero_optimization": {"stage": 3, "mics_shard_size": 2}},
            ["mics_shard_size = 2", "zero_hpz_partition_size"],
        ),
        (
            {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 4}},
            ["zero_hpz_partition_size = 4", "number of ranks, 2"],
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            ["offload_param.device = 'cpu'", "stage = 2"],
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}},
            ["device = 'nvme'", "at least stage 3"],
        ),
        ("{not json", ["is no JSON"]),
        ("[" * 5000, ["is no JSON", "nested too deeply"]),
        ('{"bf16": {}, "bf16": {}}', ["the key 'bf16' stands twice"]),
        ("[1]", ["holds [1] where an object belongs"]),
        ({"zero_optimization": 2}, ["holds 2 as zero_optimization where an object belongs"]),
        (
            {"comet": {"enabled": True, "api_key": "abc"}},
            ["sets comet.api_key, a secret that would be saved with the run"],
        ),
        (
            {
                "zero_optimization": {
                    "stage": 3,
                    "offload_param": {"device": "nvme", "nvme_path": "/x/${HF_TOKEN}"},
                }
            },
            ["$HF_TOKEN", "a secret"],
        ),
    ],
)
def test_a_contradiction_names_the_file_and_the_setting(merge, from_file, words):
    with pytest.raises(ValueError) as refusal:
        merge(from_file)
    assert all(word in str(refusal.value) for word in [*words, "deepspeed.json"]), refusal.value


def test_an_optimizer_without_moments_is_taken_where_selection_needs_none(merge, tmp_path):
    with pytest.raises(
        ValueError, match=r"selection\.method = filter_then_weight with selection\.geometry = identity"
    ):
        merge({"optimizer": {"type": "SGD"}}, method="less")
    merged = merge({"optimizer": {"type": "SGD", "params": {"momentum": 0.9}}}, geometry="identity")
    assert merged["optimizer"] == {
        "type": "SGD",
        "params": {"momentum": 0.9, "lr": 2e-4, "weight_decay": 0.0},
    }
    with pytest.raises(ValueError, match=r"optimizer.params.lr = 0.5, and the settings say 0.0002"):
        merge({"optimizer": {"type": "SGD", "params": {"lr": 0.5}}}, geometry="identity")


@pytest.mark.parametrize(
    "zero, words",
    [
        ({"zero_quantized_weights": True}, ["zero_quantized_weights", "CUDA cards", "deepspeed: zero3_hpz"]),
        (
            {"offload_optimizer": {"device": "nvme", "nvme_path": "$NO_SUCH_PATH/x"}},
            ["nvme_path = '$NO_SUCH_PATH/x'", "export it"],
        ),
        (
            {"offload_param": {"device": "nvme", "nvme_path": "/no/such/folder"}},
            ["'/no/such/folder'", "cannot write"],
        ),
    ],
)
def test_what_this_machine_cannot_run_is_refused_with_what_it_takes(merge, zero, words):
    merged = merge({"zero_optimization": {"stage": 3, **zero}})
    with pytest.raises(ValueError) as refusal:
        check_hardware(Config(deepspeed="preset.json"), merged, torch.device("cpu"))
    assert all(word in str(refusal.value) for word in [*words, "preset.json"]), refusal.value


def test_float16_at_stage_0_is_refused(merge):
    with pytest.raises(
        ValueError, match=r"zero_optimization.stage or 0, and training.precision = fp16: .* take stage 1"
    ):
        merge({}, dtype=torch.float16)


def test_float16_is_refused_where_there_is_no_arithmetic_for_it(merge, monkeypatch):
    merged = merge({"zero_optimization": {"stage": 2}}, dtype=torch.float16)
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: False, raising=False)
    with pytest.raises(
        ValueError, match=r"training\.precision = fp16 needs a CUDA card or a CPU with float16 arithmetic"
    ):
        check_hardware(Config(), merged, torch.device("cpu"))


def test_hierarchical_partitioning_follows_the_node(merge, monkeypatch):
    monkeypatch.setenv("LOCAL_SIZE", "2")
    merged = merge(
        {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": "auto"}},
        world_size=4,
        micro_batch_size=2,
    )
    assert merged["zero_optimization"]["zero_hpz_partition_size"] == 2


@pytest.mark.parametrize(
    "schedule, factors",
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25]),
        ("cosine", [1 / 3, 2 / 3, 1, 0.8536, 0.5, 0.1464]),
    ],
)
def test_learning_rate_warms_up_and_then_follows_its_schedule(schedule, factors):
    training = Config().training
    training.schedule, training.steps, training.learning_rate_warmup_steps = schedule, 6, 2
    assert [learning_rate_factor(training, step) for step in range(6)] == pytest.approx(factors, abs=1e-4)
