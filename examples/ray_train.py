"""DPO on many processes by Ray Train: a hand-written loop over `prefuse.head` on FSDP2, and `PreferenceTrainer`.

    pip install 'ray[train]' 'prefuse[trl]'
    python examples/ray_train.py                  # two workers on this machine's CPUs
    python examples/ray_train.py --workers 8 --gpu    # on this machine's, or a cluster's, eight GPUs

Ray places the workers, on one machine or on the cluster that RAY_ADDRESS (or `ray job submit`) names, and starts
`torch.distributed` between them; nothing of the two functions knows how many there are. The model is a random Llama of
a few thousand weights and the pairs are made up, so that it runs anywhere in seconds.
"""

import argparse
import os
import tempfile

import ray.train
import torch
import torch.distributed as dist
from datasets import Dataset
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import prefuse
from prefuse.trl import PreferenceConfig, PreferenceTrainer

PAIRS, PROMPT, LENGTH, VOCABULARY = 8, 4, 12, 64
"""Pairs of a batch, over all workers; tokens; classes."""

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
"""What `accelerate launch --use_fsdp --fsdp_version 2 …` would set."""


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )


def pairs() -> torch.Tensor:
    """Tokens, all chosen responses and then all rejected ones, which answer the same prompts."""
    tokens = torch.randint(2, VOCABULARY, (2, PAIRS, LENGTH), generator=torch.Generator().manual_seed(1))
    tokens[1, :, :PROMPT] = tokens[0, :, :PROMPT]
    return tokens


def hand_written(config: dict) -> list[dict[str, float]]:
    """A worker: its share of every batch through a sharded model, and the loss of it."""
    logs = []
    rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    device = ray.train.torch.get_device()
    policy = model().to(device)
    for layer in policy.model.layers:
        fully_shard(layer)
    fully_shard(policy)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.5)

    tokens = pairs()[:, rank * PAIRS // world : (rank + 1) * PAIRS // world].flatten(0, 1).to(device)
    labels = tokens.clone()
    labels[:, :PROMPT] = -100
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    with prefuse.head(policy) as head:
        with torch.no_grad():
            reference = head.sequence_logps(labels, inputs=inputs)  # of the model as it is before training
        for _ in range(config["steps"]):
            score = head.preference_loss("dpo", labels=labels, inputs=inputs, reference=reference, beta=0.1)
            optimizer.zero_grad()
            score.loss.backward()
            optimizer.step()
            loss = score.loss.detach().clone()
            dist.all_reduce(loss)  # shares are of one size, so that their mean is the batch's
            logs.append({"loss": loss.item() / world, **weights_of(policy)})
            ray.train.report(logs[-1])  # and a checkpoint now and then, from which Ray resumes
    return logs


def trainer(config: dict) -> list[dict[str, float]]:
    """A worker: TRL's trainer with any objective. It finds the processes that Ray has started."""
    on_gpus = ray.train.torch.get_device().type == "cuda"
    os.environ.update(FSDP2 if on_gpus else {"ACCELERATE_USE_CPU": "true"})  # accelerate runs DDP on CPUs
    words = [f"w{number}" for number in range(VOCABULARY - 3)]
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    chosen, rejected = ([f" w{row % 20} w{shift + row % 7}" for row in range(4 * PAIRS)] for shift in (20, 30))
    data = Dataset.from_dict({"prompt": [" w1 w2"] * len(chosen), "chosen": chosen, "rejected": rejected})
    world = ray.train.get_context().get_world_size()
    with tempfile.TemporaryDirectory() as folder:
        args = PreferenceConfig(
            folder,
            objective=config["objective"],
            max_steps=config["steps"],
            per_device_train_batch_size=PAIRS // world,
            learning_rate=0.1,
            optim="sgd",
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            bf16=False,
        )
        training = PreferenceTrainer(model(), args=args, train_dataset=data, processing_class=tokenizer)
        training.train()
        after = weights_of(training.model)
    return [{"loss": entry["loss"], **after} for entry in training.state.log_history if "loss" in entry]


def weights_of(policy: torch.nn.Module) -> dict[str, float]:
    """The sum of the squares of all weights, wherever their parts are, and how many of them this worker holds."""
    weights = [value.detach() for value in policy.parameters()]
    whole = (value.full_tensor() if isinstance(value, DTensor) else value for value in weights)
    held = (value.to_local() if isinstance(value, DTensor) else value for value in weights)
    return {
        "weights": sum(value.double().square().sum().item() for value in whole),
        "held": sum(value.numel() for value in held),
    }


def main(workers: int = 2, gpu: bool = False, steps: int = 5) -> dict[str, list[dict[str, float]]]:
    logs = {}
    for name, worker, config in (
        ("hand-written loop, dpo", hand_written, {"steps": steps}),
        ("PreferenceTrainer, simpo", trainer, {"steps": steps, "objective": "simpo"}),
    ):
        scaling = ScalingConfig(num_workers=workers, use_gpu=gpu)
        result = TorchTrainer(worker, train_loop_config=config, scaling_config=scaling).fit()
        logs[name] = result.return_value  # of the first worker
        print(f"{name}: loss {logs[name][0]['loss']:.4f} -> {logs[name][-1]['loss']:.4f}")
    return logs


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args()
    main(options.workers, options.gpu)
