"""Options of a training run: file, flags, and what is refused."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from llava_stf.errors import LlavaStfError
from llava_stf.training.config import FinetuneConfig, parse

REQUIRED = ["--base", "tiny", "--data", "d.json", "--output", "out"]
SCRIPTS = Path(__file__).parents[2] / "scripts"
CONFIGS = sorted((SCRIPTS / "configs").glob("*.yaml"))


def test_flags_win_over_the_file_and_both_spellings_work(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("base: tiny\ndata: a.json\noutput: out\nlearning_rate: 1e-3\nvision_tokens: 16\nbf16: false\n")
    config = parse(["--config", str(file), "--data", "b.json", "--max-steps", "7", "--max_length=99", "--resume"])
    assert (config.base, config.data, config.max_steps, config.max_length) == ("tiny", "b.json", 7, 99)
    assert (config.learning_rate, config.vision_tokens, config.bf16, config.resume) == (1e-3, 16, False, True)


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--vision-tokens", "all"], "vision_tokens", "all"),
        (["--vision-tokens", "none"], "vision_tokens", None),
        (["--bf16", "false"], "bf16", False),
        (["--bf16", "auto"], "bf16", "auto"),
        (["--epochs", "2"], "epochs", 2.0),
        (["--learning-rate", "2e-5"], "learning_rate", 2e-5),
        (["--stage=align"], "stage", "align"),
        (["--vision-tokens", "144,64,36"], "vision_tokens", (144, 64, 36)),
        (["--vision-tokens", "36,"], "vision_tokens", (36,)),
    ],
)
def test_values_have_the_type_of_their_field(flags, field, value):
    found = getattr(parse([*REQUIRED, *flags]), field)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning-rte", "1"], "--learning-rte.*--learning_rate"),
        (["--stage", "distil"], "stage must be align or instruct or distill, found 'distil'"),
        (["--max-steps", "1.5"], "max_steps must be int"),
        (["--learning-rate", "nan"], "learning_rate must be float"),
        (["--learning-rate=-1e-4"], "learning_rate must be at least 0"),
        (["--adam-beta2", "1"], r"adam_beta2 must be in \[0, 1\)"),
        (["--seed", "4294967296"], "seed must be at least 0 and below"),
        (["--max-steps", "0"], "max_steps must be at least 1"),
        (["--bf16", "maybe"], "bf16 must be auto or bool"),
        (["--seed"], "seed must be int"),
        (["--vision-tokens", "most"], "vision_tokens must be all or int or several int with commas, found 'most'"),
        (["--warmup-ratio", "1"], "warmup_ratio"),
        (["--max-grad-norm", "-1"], "max_grad_norm must be at least 0"),
        (["--stage", "align", "--vision-tower-learning-rate", "1e-4"], "align leaves the vision tower as it is"),
        (["--stage", "distill", "--vision-tokens", "all"], "all is the teacher itself"),
        (["--feature-weight", "1"], "feature_weight is for stage distill, found stage instruct"),
        (["--stage", "distill", "--feature-weight", "-1"], "feature_weight must be at least 0"),
        (["--vision-tokens", "16,few"], "vision_tokens must be"),
        (["--vision-tokens", "all", "--reduction", "pool"], "leave out one"),
        (["--data", ""], "--data is required"),
        (["--lora-rank", "8", "--stage", "align"], "align trains the projector alone .*leave out lora_rank"),
        (["--quantization", "4bit"], "4-bit weights cannot be trained in full: give lora_rank"),
        (["--quantization", "8bit", "--lora-rank", "8"], "quantization must be 4bit, found '8bit'"),
        (["--lora-alpha", "8"], "lora_alpha is for LoRA: give lora_rank too"),
        (["--lora-rank", "0"], "lora_rank must be at least 1"),
        (["--lora-rank", "8", "--lora-dropout", "1"], "lora_dropout"),
        (["--lora-rank", "8", "--vision-tower-learning-rate", "1e-4"], "LoRA leaves the vision tower frozen"),
        (["--resume", "--overwrite"], "leave out one"),
        (["--config", "nowhere.yaml"], r"cannot read the config nowhere\.yaml"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(flags, message):
    with pytest.raises(LlavaStfError, match=message) as error:
        parse([*REQUIRED, *flags])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", ["a", "3", float("nan"), -1])
def test_numbers_that_are_none_are_refused_without_a_file_too(seed):
    with pytest.raises(LlavaStfError, match=f"seed must be at least 0 and below 2.*, found {seed!r}"):
        FinetuneConfig(base="b", data="d", output="o", seed=seed)


@pytest.mark.parametrize("text", ["- base\n", "base: [\n", "learning_rates: 3\n"])
def test_wrong_files_are_refused(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(LlavaStfError):
        parse(["--config", str(file), *REQUIRED])


def test_learning_rates_follow_the_stage():
    assert parse([*REQUIRED, "--stage", "align"]).learning_rates == {"projector": 1e-3}
    assert parse(REQUIRED).learning_rates == {"projector": 2e-5, "language_model": 2e-5}
    rates = parse(
        [*REQUIRED, "--learning-rate", "3", "--projector-learning-rate", "2", "--vision-tower-learning-rate", "1"]
    )
    assert rates.learning_rates == {"projector": 2.0, "language_model": 3.0, "vision_tower": 1.0}


def test_distillation_trains_the_llm_by_adapters_alone():
    assert parse([*REQUIRED, "--stage", "distill"]).learning_rates == {"projector": 1e-3}
    rates = parse([*REQUIRED, "--stage", "distill", "--lora-rank", "8"]).learning_rates
    assert rates == {"projector": 2e-5, "language_model": 1e-4}


def test_a_file_may_list_the_budgets(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("vision_tokens: [144, 64]\n")
    assert parse(["--config", str(file), *REQUIRED]).vision_tokens == (144, 64)


def test_lora_has_learning_rates_of_its_own():
    assert parse([*REQUIRED, "--lora-rank", "8"]).learning_rates == {"projector": 2e-5, "language_model": 1e-4}
    rates = parse([*REQUIRED, "--lora-rank", "8", "--learning-rate", "3"]).learning_rates
    assert rates == {"projector": 2e-5, "language_model": 3.0}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path):
    assert isinstance(parse(["--config", str(path), *REQUIRED]), FinetuneConfig)


def shipped(stem):
    (path,) = (path for path in CONFIGS if path.stem == stem)
    return parse(["--config", str(path)])


def test_shipped_7b_configs_have_the_papers_hyper_parameters():
    align, instruct = shipped("pretrain-7b"), shipped("finetune-7b")
    assert (align.base, align.vision_tower) == ("lmsys/vicuna-7b-v1.5", "openai/clip-vit-large-patch14-336")
    assert (align.vision_tokens, align.init, instruct.base) == (144, "random", align.output)
    assert (align.stage, align.learning_rate, instruct.stage, instruct.learning_rate) == (
        "align",
        1e-3,
        "instruct",
        2e-5,
    )
    devices = 8
    assert align.per_device_batch_size * align.gradient_accumulation * devices == 256
    assert instruct.per_device_batch_size * instruct.gradient_accumulation * devices == 128
    for config in (align, instruct):
        assert (config.epochs, config.max_steps, config.scheduler, config.warmup_ratio) == (1.0, None, "cosine", 0.03)
        assert (config.weight_decay, config.max_grad_norm, config.max_length, config.bf16) == (0.0, 1.0, 2048, True)


@pytest.mark.parametrize(("stem", "quantization"), [("finetune-7b-lora", None), ("finetune-7b-qlora", "4bit")])
def test_shipped_lora_configs_have_the_values_of_the_papers_script(stem, quantization):
    config, full = shipped(stem), shipped("finetune-7b")
    assert (config.lora_rank, config.lora_alpha, config.lora_dropout, config.quantization) == (
        128,
        256,
        0.05,
        quantization,
    )
    assert config.learning_rates == {"projector": 2e-5, "language_model": 1e-4}
    assert config.per_device_batch_size * config.gradient_accumulation == 128  # on one GPU
    for name in ("stage", "base", "epochs", "scheduler", "warmup_ratio", "weight_decay", "max_length", "bf16"):
        assert getattr(config, name) == getattr(full, name)


@pytest.mark.parametrize(
    ("stem", "kind", "section"),
    [
        ("one-gpu", DistributedType.NO, {}),
        ("ddp", DistributedType.MULTI_GPU, {}),
        ("fsdp2", DistributedType.FSDP, {"fsdp_version": 2}),
        ("deepspeed-zero2", DistributedType.DEEPSPEED, {"zero_stage": 2}),
        ("deepspeed-zero3", DistributedType.DEEPSPEED, {"zero_stage": 3}),
    ],
)
def test_shipped_accelerate_configs_launch_what_their_names_say(stem, kind, section):
    launch = load_config_from_file(str(SCRIPTS / "accelerate" / f"{stem}.yaml"))
    assert launch.distributed_type == kind
    assert launch.mixed_precision == "bf16"
    assert section.items() <= (launch.fsdp_config | launch.deepspeed_config).items()
