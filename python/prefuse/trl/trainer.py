"""`PreferenceTrainer`: TRL's DPO trainer with any objective."""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import broadcast_object_list, gather_object, is_peft_model, tqdm
from datasets import Dataset, IterableDataset, concatenate_datasets
from datasets.fingerprint import Hasher
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import AutoProcessor, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging
from trl import DPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import get_config_model_id, use_adapter

from prefuse._statistics.responses import sum_responses
from prefuse.catalogue.entries import entry
from prefuse.language import Objective, Score
from prefuse.losses.preference import preference_loss
from prefuse.metrics import ranking_accuracy
from prefuse.models.causal_lm import find_causal_lm
from prefuse.models.head import Head, HeadTensors, head
from prefuse.trl import training_line
from prefuse.trl.averages import Means
from prefuse.trl.batches import PreferenceCollator, joined, labels_of, responses_in, roles_of, scored_of
from prefuse.trl.config import PreferenceConfig
from prefuse.trl.dropout import DropoutRates
from prefuse.trl.images import ImageCollator
from prefuse.trl.requirements import LISTS, PAIRS, Sources, find_sources, requirements_of
from prefuse.trl.rows import columns_to_keep, has_images, names_of, reference_columns, tokenised, with_room
from prefuse.trl.totals import mean_totals

logger = logging.get_logger(__name__)

_OURS = frozenset({"completion_mask", "columns", "groups", "reference", "mismatched", "cu_seqlens"})
"""What of a batch the model does not take."""


class PreferenceTrainer(DPOTrainer):  # type: ignore[misc]
    """Trains a causal LM with any preference objective; everything else is `trl.DPOTrainer`'s.

    The loss is `prefuse.preference_loss` inside of the model, without logits. What the objective reads decides:

    - Pairs come as ``prompt``, ``chosen``, ``rejected`` and one column per further response, named by its role; single
      responses as ``prompt`` and ``completion``; lists as ``prompt`` and ``completions``. Text or conversations, or
      tokens (``prompt_ids``, ``chosen_ids``, …). A response with a prompt of its own has it in ``<role>_prompt``.
    - Any other column that it reads is looked up by name.
    - Without a reference in it, no reference model is loaded or run.

    Args:
        model: as in `trl.DPOTrainer`, and so are the other arguments that are not named here.
        ref_model: the reference model. Where the objective reads one and none is given, it is the policy before
            training: its weights without adapters, or a copy.
        args: a `PreferenceConfig`; None: DPO.
        data_collator: makes batches as `prefuse.trl.batches.PreferenceCollator` does; None: such a one.
        train_dataset: rows as above.

    Raises:
        TypeError: `args`, `train_dataset` or `processing_class` of another class.
        ValueError: a column that the objective reads is missing, or an option that makes no sense with it.
    """

    _tag_names: Sequence[str] = ("trl", "prefuse", "preference")
    _rates: DropoutRates | None = None
    _totals: Mapping[str, float] = MappingProxyType({})

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: PreferenceConfig | None = None,
        data_collator: Callable[..., Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: Callable[..., Any] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
    ) -> None:
        if args is None:
            args = PreferenceConfig(f"{_id_of(model).split('/')[-1]}-preference")
        if not isinstance(args, PreferenceConfig):
            raise TypeError(f"args: expected a prefuse.trl.PreferenceConfig, got {type(args).__name__}")
        if train_dataset is None:
            raise ValueError("`train_dataset` is required, got None")
        if not isinstance(train_dataset, Dataset | IterableDataset):
            raise TypeError(
                f"`train_dataset` must be a `Dataset` or `IterableDataset`, got `{type(train_dataset).__name__}`"
            )
        self.objective = args.resolved_objective()
        self._name, self._paper = self.objective.name, _paper_of(self.objective)
        if self._name.isidentifier():  # not a composition, whose name is a formula
            self._tag_names = [*self._tag_names, self._name]
        self._requires = requirements_of(self.objective)
        self._check_options(args, ref_model)
        self._check_batch_sizes(args, eval_dataset is not None)
        self._sources = self._sources_of(train_dataset, "train_dataset")
        if processing_class is None:
            processing_class = _load_processing_class(model, args)
        if not isinstance(processing_class, PreTrainedTokenizerBase | ProcessorMixin):
            raise TypeError(
                "The `processing_class` must be either a `PreTrainedTokenizerBase` or a `ProcessorMixin`, "
                f"got `{type(processing_class).__name__}`"
            )
        images = has_images(names_of(train_dataset))
        if images:
            self._check_images(args)
        if data_collator is None:
            data_collator = self._collator(args, processing_class, images)
        absent = self._requires.reference is None
        if absent:
            ref_model = _Absent()
        elif ref_model is None and _is_to_be_copied(model, args, peft_config):
            ref_model = copy.deepcopy(model)
        if isinstance(ref_model, torch.nn.Module):
            ref_model.eval()  # as one that TRL loads
        with _without_packing(args):
            super().__init__(
                model=model,
                ref_model=ref_model,
                args=args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                compute_metrics=compute_metrics,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
            )
        self.padding_free = args.padding_free
        if args.fallback == "error":
            models: list[Any] = [self.model, None if absent else getattr(self, "ref_model", None)]
            for each in models:
                if each is not None:
                    head(each, fallback="error")
        if absent:
            self.ref_model = None
        self._data_group = self._batch_of_all()

    # Without dropout

    def train(self, *arguments: Any, **options: Any) -> Any:
        """As TRL's. With `disable_dropout`, rates that are not `nn.Dropout` modules are 0 while it lasts, too."""
        with self._without_dropout():
            return super().train(*arguments, **options)

    def save_model(self, *arguments: Any, **options: Any) -> None:
        """As TRL's; what is saved has the rates that the model came with."""
        with contextlib.nullcontext() if self._rates is None else self._rates.as_before():
            super().save_model(*arguments, **options)

    @contextlib.contextmanager
    def _without_dropout(self) -> Iterator[None]:
        if not self.args.disable_dropout or self._rates is not None:
            yield
            return
        self._rates = DropoutRates(self.model, self.ref_model)
        try:
            with self._rates.zero():
                yield
        finally:
            self._rates = None

    # Before anything is loaded

    def _check_options(self, args: PreferenceConfig, ref_model: Any) -> None:
        if self._requires.reference is None:
            for name, value in (
                ("ref_model", ref_model is not None),
                ("precompute_ref_log_probs", args.precompute_ref_log_probs),
                ("sync_ref_model", args.sync_ref_model),
            ):
                if value:
                    raise ValueError(f"{name}: {self.objective.name} reads nothing of a reference model; leave it out")
        if args.precompute_ref_log_probs and (self._requires.reference != "responses" or self._requires.mismatched):
            what = "completions of other prompts" if self._requires.mismatched else "single tokens"
            raise ValueError(
                f"precompute_ref_log_probs: {self.objective.name} reads the reference of {what}, and only "
                "log-probabilities of whole responses are precomputed; set it to False"
            )

    def _check_batch_sizes(self, args: PreferenceConfig, evaluates: bool) -> None:
        """Refuses batches of one row where the loss of a row depends on other rows."""
        sizes = {"per_device_train_batch_size": args.train_batch_size}
        if evaluates:
            sizes["per_device_eval_batch_size"] = args.eval_batch_size
        for name, size in sizes.items():
            if self._requires.mismatched and size < 2:
                what = "pairs each prompt with the completion of another row of the batch of its process"
            elif self._requires.compares_rows and self._rows_scored_together(size, args.world_size) < 2:
                what = "compares the rows of a batch with each other"
            else:
                continue
            raise ValueError(f"{name}: expected 2 or more, because {self.objective.name} {what}, got {size}")

    def _rows_scored_together(self, size: int, processes: int) -> int:
        return size if self._requires.tokens else size * processes

    def _sources_of(self, dataset: Any, name: str) -> Sources:
        return find_sources(self._requires, names_of(dataset), name)

    def _check_images(self, args: PreferenceConfig) -> None:
        """Refuses what does not go together with images, beside what TRL refuses."""
        if self._sources.layout != PAIRS or any(level.startswith("token") for _, level, _ in self._sources.columns):
            raise ValueError(
                f"train_dataset: {self.objective.name} reads single responses, lists or columns by token, and only "
                "pairs come with images"
            )
        for name, wanted in (("padding_free", False), ("pad_to_multiple_of", None)):
            if getattr(args, name) != wanted:
                raise ValueError(f"{name}: expected {wanted} for data with images, got {getattr(args, name)}")

    def _collator(self, args: PreferenceConfig, processing_class: Any, images: bool) -> Callable[..., Any]:
        if images:
            return ImageCollator(self._sources, processing_class, args.max_length)
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return PreferenceCollator(
            self._sources,
            tokenizer.pad_token_id,
            args.max_length,
            args.truncation_mode,
            args.pad_to_multiple_of,
            args.padding_free,
            self._requires.mismatched,
            args.precompute_ref_log_probs,
        )

    def _batch_of_all(self) -> Any:
        """The processes whose batches are scored as one: all, where the loss of an item depends on the batch."""
        if not self._requires.coupled or self.accelerator.num_processes == 1:
            return None
        if self._requires.tokens:
            logger.warning(
                f"{self.objective.name} looks at the whole batch and reads columns by token, which processes do not "
                "exchange: each process scores its own batch"
            )
            return None
        return dist.group.WORLD

    # Data

    def get_train_dataloader(self) -> Any:
        """As TRL's; a last batch of one row is left out where the loss compares rows, and a warning says so."""
        with self._without_last_row(self.train_dataset, "train_dataset", self._train_batch_size):
            return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Likewise."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]
        if isinstance(dataset, dict):
            return super().get_eval_dataloader(eval_dataset)
        with self._without_last_row(dataset, "eval_dataset", self.args.eval_batch_size):
            return super().get_eval_dataloader(eval_dataset)

    @contextlib.contextmanager
    def _without_last_row(self, dataset: Any, name: str, size: int) -> Iterator[None]:
        """While it lasts, loaders of `dataset` leave out a last batch of one row that other rows are needed for."""
        # Several processes get batches of one size: accelerate fills up the last ones with rows of the beginning.
        alone = (
            self._requires.compares_rows
            and not self._requires.mismatched  # whose completions of the batch before do
            and self._sources.layout != LISTS
            and self.accelerator.num_processes == 1
            and hasattr(dataset, "__len__")
            and len(dataset) % size == 1
            and not self.args.dataloader_drop_last
        )
        if not alone:
            yield
            return
        if len(dataset) == 1:
            raise ValueError(
                f"{name}: expected 2 rows or more, because {self.objective.name} compares the rows of a batch with "
                "each other, got 1"
            )
        logger.warning(
            f"{name}: {len(dataset)} rows in batches of {size} leave one row for the last batch, and "
            f"{self.objective.name} compares the rows of a batch with each other: the last batch is left out"
        )
        self.args.dataloader_drop_last = True
        try:
            yield
        finally:
            self.args.dataloader_drop_last = False

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: PreferenceConfig, dataset_name: str) -> Any:
        sources = self._sources_of(dataset, dataset_name)
        if sources != self._sources:
            raise ValueError(f"{dataset_name}: expected the columns of train_dataset, {self._sources}, got {sources}")
        dataset = tokenised(
            dataset, dataset_name, sources, processing_class, self._tokenizer.eos_token, args.dataset_num_proc
        )
        if args.max_length is None or args.truncation_mode != "keep_start":
            return dataset
        return with_room(dataset, dataset_name, sources, args.max_length, args.dataset_num_proc)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:  # type: ignore[has-type]
            if self._is_vision_dataset:
                texts = (*self._sources.prompts, *self._sources.responses)
                own = [source for _, _, source in self._sources.columns]
                self._signature_columns = [*dict.fromkeys(texts), "image", "images", *own]
            else:
                precomputed = reference_columns(self._sources) if self.args.precompute_ref_log_probs else ()
                self._signature_columns = columns_to_keep(self._sources, precomputed)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """The data set with the reference's log-probabilities of every response, kept on disk beside it."""
        if isinstance(dataset, IterableDataset):
            raise ValueError(
                f"precompute_ref_log_probs: not supported with IterableDataset, which {name} is; "
                "give a map-style Dataset, or set it to False"
            )
        columns = reference_columns(self._sources)
        if set(columns) <= set(dataset.column_names):
            return dataset
        identity = [Hasher.hash((dataset._fingerprint, self._precompute_model_hash, columns))]
        broadcast_object_list(identity, from_process=0)
        cache = dataset._get_cache_file_path(identity[0])
        if not all(gather_object([os.path.exists(cache)])):
            with self._without_dropout():
                values = self._reference_of_rows(dataset, name, batch_size)
            if self.accelerator.is_main_process:
                dataset.map(
                    lambda _, rows: {column: [values[column][row] for row in rows] for column in columns},
                    with_indices=True,
                    batched=True,
                    remove_columns=dataset.column_names,
                    new_fingerprint=identity[0],
                    cache_file_name=cache,
                    desc=f"Keeping the reference of {name}",
                )
            self.accelerator.wait_for_everyone()
            if not os.path.exists(cache):  # data sets in memory keep their files where no other process looks
                return concatenate_datasets([dataset, Dataset.from_dict(values)], axis=1)
        return concatenate_datasets([dataset, Dataset.from_file(cache)], axis=1)

    def _reference_of_rows(self, dataset: Any, name: str, batch_size: int) -> dict[str, list[Any]]:
        """One value per row, or in lists one list per row."""
        lists = self._sources.layout == LISTS
        loader = self.accelerator.prepare(DataLoader(dataset, batch_size, collate_fn=self.data_collator))
        columns: dict[str, list[Tensor]] = {column: [] for column in reference_columns(self._sources)}
        for batch in tqdm(loader, desc=f"Reference of {name}", disable=bool(self.args.disable_tqdm)):
            made = self.compute_ref_log_probs(self.ref_model or self.model, batch)
            for column, values in zip(columns, made, strict=True):
                rows = _in_rows(values, batch["groups"]) if lists else values
                if lists:
                    rows = self.accelerator.pad_across_processes(rows, dim=1, pad_index=torch.nan)
                columns[column].append(self.accelerator.gather_for_metrics(rows).cpu())
        whole = {column: [row for part in parts for row in part.tolist()] for column, parts in columns.items()}
        if lists:  # without what fills rows up
            counts = [len(ids) for ids in dataset["completions_ids"]]
            whole = {name: [row[:n] for row, n in zip(rows, counts, strict=True)] for name, rows in whole.items()}
        return whole

    # Models

    @contextlib.contextmanager
    def _as_reference(self, model: Any) -> Iterator[None]:
        """While it lasts, calls of `model` are those of the reference, without gradients."""
        adapter: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self.ref_model is None and is_peft_model(self.model):
            unwrapped = self.accelerator.unwrap_model(self.model)
            adapter = use_adapter(unwrapped, adapter_name="ref" if "ref" in unwrapped.peft_config else None)
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            adapter,
            self.accelerator.autocast(),
        ):
            yield

    def compute_ref_log_probs(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The reference's log-probabilities of whole responses in nats: for pairs one tensor per role, else one."""
        with self._as_reference(model):
            logps = self._sequence_logps(model, inputs)
        return logps.chunk(len(reference_columns(self._sources)))

    def _reference(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of `preference_loss` that say what the reference model says."""
        if self._requires.reference is None:
            return {}
        if "reference" in inputs:
            return {"reference": inputs["reference"]}
        model = self.ref_model or self.model
        with self._as_reference(model):
            if self._requires.reference == "responses":
                return {"reference": self._sequence_logps(model, inputs)}
            if self._requires.reference == "tokens":
                return {"reference": self._token_logps(model, inputs)}
            hidden, tensors = self._inside(model, inputs, lambda hidden, tensors: (hidden, tensors))
        own = {} if model is self.model else _after_forward(model, hidden, tensors)
        return {"reference": hidden, **own}

    def _mismatched(self, model: Any, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Log-probabilities of completions that answer other prompts, by the policy and the reference.

        Where prompts are shared, the reference's of the batch itself come along.
        """
        if "mismatched" not in inputs:
            return {}
        others = inputs["mismatched"]
        if others is None:
            logger.warning(
                f"{self.objective.name}: a batch of one row with no batch before it has no completion of another "
                "prompt; its estimate of the divergence is taken as 0"
            )
            nothing = torch.zeros(len(labels_of(inputs)), device=inputs["input_ids"].device)
            return {"kl_logps": nothing, "ref_kl_logps": nothing}
        with torch.no_grad():
            policy = self._sequence_logps(model, others)
        reference = self.ref_model or self.model
        with self._as_reference(reference):
            if not self.args.share_prompts or "cu_seqlens" in inputs:
                return {"kl_logps": policy, "ref_kl_logps": self._sequence_logps(reference, others)}
            # Each prompt once for its own completion and for the other's.
            own, other = self._sequence_logps(reference, joined(inputs, others)).chunk(2)
        return {"kl_logps": policy, "ref_kl_logps": other, "reference": own}

    def _head(self, model: Any) -> Head:
        """The fused head of a model, which is patched where it is not yet."""
        return head(model, share_prompts=self.args.share_prompts)

    def _inside(self, model: Any, inputs: Mapping[str, Any], function: Callable[[Tensor, HeadTensors], Any]) -> Any:
        """Calls a model with a function in the place of its LM head."""
        return self._head(model).run(function, labels=labels_of(inputs), inputs=_for_model(inputs))

    def _sequence_logps(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """log p of each response of a batch, [R]."""
        labels, offsets = labels_of(inputs), inputs.get("cu_seqlens")
        return self._head(model).sequence_logps(labels, inputs=_for_model(inputs), cu_seqlens=offsets)

    def _token_logps(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """log p of each token of a batch, in the shape of its labels."""
        labels, offsets = labels_of(inputs), inputs.get("cu_seqlens")
        return self._head(model).token_logps(labels, inputs=_for_model(inputs), cu_seqlens=offsets)

    # The loss

    def get_batch_samples(self, *arguments: Any, **options: Any) -> tuple[list[Any], Any]:
        """As transformers', which here hands out all micro-batches of a step; their tokens are counted."""
        batches, items = super().get_batch_samples(*arguments, **options)
        together = self._data_group is not None or self.accelerator.num_processes == 1
        counted = self.args.token_mean == "step" and self._requires.totals and not (together and len(batches) < 2)
        self._totals = mean_totals(self.objective, batches, self.accelerator, together) if counted else {}
        return batches, items

    def _is_alone(self, inputs: Mapping[str, Any]) -> bool:
        """Whether a batch is one row that other rows are needed for, as the last of a streamed data set may be."""
        if not self._requires.compares_rows or self._requires.mismatched or self._sources.layout == LISTS:
            return False
        rows = responses_in(inputs) // len(self._sources.responses)
        return self._rows_scored_together(rows, self.accelerator.num_processes) < 2

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        if self._is_alone(inputs):
            logger.warning(
                f"{self._moment()}: a batch of one row is left out, because {self.objective.name} compares the rows of "
                "a batch with each other"
            )
            nothing = self._inside(model, inputs, lambda hidden, tensors: {"loss": hidden.sum() * 0.0})["loss"]
            return (nothing, model(**_for_model(inputs))) if return_outputs else nothing
        of_step = self._totals if self.model.training else {}
        columns = {**inputs.get("columns", {}), **self._mismatched(model, inputs), **of_step}
        if self._requires.grouped:  # ids that mean the same in all processes
            columns["groups"] = inputs["groups"] + (self.accelerator.process_index << 32)
        labels, offsets = labels_of(inputs), inputs.get("cu_seqlens")
        options = {
            **({} if "reference" in columns else self._reference(inputs)),
            **columns,
            "cu_seqlens": offsets,
            "shift": True,
            "statistics": tuple(dict.fromkeys(("logp", *self.args.log_statistics))),
            "workspace_bytes": self.args.workspace_bytes,
            "data_group": self._data_group,
        }
        scores: list[Score] = []

        def inside(hidden: Tensor, tensors: HeadTensors) -> dict[str, Tensor]:
            hidden = hidden[:, -labels.shape[-1] :]  # prompt tuning puts tokens of its own in front
            source = tensors.source(hidden)
            if "hidden" in source:  # logits that the model has made have a dense gradient
                source["sparse"] = self.args.head_sparse
            score = preference_loss(self.objective, labels=labels, **source, **options)
            scores.append(score)
            if hidden.requires_grad and not torch.compiler.is_compiling():
                shared = self._head(model).tokens.since(computed) if self.args.share_prompts else None
                causal_lm = self._head(model).causal_lm
                training_line.say(causal_lm, self._name, score.plan, labels.numel(), shared)
            found = {"loss": score.loss}
            return found if tensors.aux_loss is None else {**found, "aux_loss": tensors.aux_loss}

        router = {"output_router_logits": True} if self.aux_loss_enabled else {}
        computed = replace(self._head(model).tokens)
        found = self._inside(model, {**inputs, **router}, inside)
        means = Means(labels.device)
        if self.args.share_prompts:
            made = self._head(model).tokens.since(computed)
            means.add("prompts/spared", float(made.given - made.computed), float(made.given))
        loss = found["loss"]
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * found["aux_loss"]
            means.add("aux_loss", found["aux_loss"], 1.0)
        self._look_at(means, scores[0], labels, inputs, columns)
        means.add("nonfinite", ~loss.detach().isfinite(), 1.0)
        means.add("unscored", 1.0 - scored_of(labels, offsets).any().float(), 1.0)
        totals = means.over_processes(self.accelerator)
        self._log_means(totals)
        if totals["nonfinite"][0] and self.args.on_nonfinite_loss == "error":
            raise FloatingPointError(
                f"{self._moment()}: the loss is {loss.item()}, because {self._cause(scores[0], labels, options)}. "
                'on_nonfinite_loss="log" goes on regardless'
            )
        if not return_outputs:
            return loss
        with torch.no_grad():
            return loss, model(**_for_model(inputs))

    # What is logged

    def _look_at(
        self, means: Means, score: Score, labels: Tensor, inputs: Mapping[str, Any], columns: Mapping[str, Tensor]
    ) -> None:
        """Adds everything that is logged of one batch."""
        offsets = inputs.get("cu_seqlens")
        lengths = _per_response(scored_of(labels, offsets).float(), offsets)
        sums = {name: _per_response(value.float(), offsets) for name, value in score.statistics.items()}
        classes = self._classes(len(lengths), columns, labels.device)
        items = score.losses.numel() / (1 if self._data_group is None else self.accelerator.num_processes)
        gradient = sums.pop("gradient", None)
        for name, members in classes.items():
            tokens, count = (lengths * members).sum(), members.sum()
            means.add(f"logps/{name}", (sums["logp"] * members).sum(), count)
            for statistic, title in (("mean_logit", "logits"), ("topk_mass", "topk_mass")):
                if statistic in sums:
                    means.add(f"{title}/{name}", (sums[statistic] * members).sum(), tokens)
            if gradient is not None:
                pull = _per_response(score.statistics["gradient"].float().abs(), offsets) / lengths.clamp(min=1)
                means.add(f"gradient_weight/{name}", (pull * members).sum() * items, count)
        for statistic in ("entropy", "topk_entropy"):
            if statistic in sums:
                means.add(statistic, sums[statistic].sum(), lengths.sum())
        if "top1" in sums:
            members = classes.get("chosen", torch.ones_like(lengths))
            means.add("mean_token_accuracy", (sums["top1"] * members).sum(), (lengths * members).sum())
        if self._requires.kind == "pair":
            of_role = {role: sums["logp"][rows] for role, rows in roles_of(self._sources, len(lengths)).items()}
            accuracy = ranking_accuracy(of_role["chosen"], of_role["rejected"])
            means.add("ranking_accuracy", accuracy * len(of_role["chosen"]), len(of_role["chosen"]))
        self._add_own_metrics(means, score, classes, lengths.sum())
        given = inputs.get("attention_mask")
        means.add("num_tokens", labels.numel() if given is None else given.sum(), 1.0)

    def _add_own_metrics(self, means: Means, score: Score, classes: Mapping[str, Tensor], tokens: Tensor) -> None:
        """The objective's metrics: means over this process's batch, or over that of all."""
        for name, value in score.metrics.items():
            title, _, member = name.partition("/")
            if title == "logps":  # of every response already, whether the objective reads it or not
                continue
            weight: Tensor | float = 1.0
            if self._data_group is None:
                weight = tokens if name in self._requires.token_metrics else classes.get(member, torch.ones(1)).sum()
            value = torch.as_tensor(value)
            nothing = value.isnan()  # a mean over no row of this batch, which counts for nothing
            means.add(name, value.masked_fill(nothing, 0.0) * weight, weight * ~nothing)

    def _classes(self, responses: int, columns: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Which responses are told apart in the logs, as weights [R]: by role, by label, or all as one."""
        roles = roles_of(self._sources, responses)
        if roles:
            found = {role: torch.zeros(responses, device=device) for role in roles}
            for role, rows in roles.items():
                found[role][rows] = 1.0
            return found
        if self._requires.kind == "point" and "label" in columns:
            liked = (columns["label"] != 0).float()
            return {"chosen": liked, "rejected": 1.0 - liked}
        return {"mean": torch.ones(responses, device=device)}

    def _moment(self) -> str:
        return f"step {self.state.global_step + 1}" if self.model.training else "evaluation"

    def _cause(self, score: Score, labels: Tensor, options: Mapping[str, Any]) -> str:
        """What is not finite first, of what the loss of this process's batch is made of."""
        offsets = options["cu_seqlens"]
        given = {name: options[name] for name, _, _ in self._sources.columns}
        for name, values in given.items():
            if values.is_floating_point() and not values.isfinite().all():
                return f"the column {name} is {_first_nonfinite(values)}"
        made = {"log-probability": _per_response(score.statistics["logp"].detach().float(), offsets)}
        if self._requires.reference == "responses":
            made["reference's log-probability"] = options["reference"]
        elif self._requires.reference == "tokens":
            made["reference's log-probability"] = _per_response(options["reference"].float(), offsets)
        responses = self._names_of_responses(len(made["log-probability"]))
        for name, values in made.items():
            if not values.isfinite().all():
                which = int((~values.isfinite()).nonzero()[0])
                return f"the {name} of {responses[which]} is {values[which].item()}"
        for name in ("kl_logps", "ref_kl_logps"):  # after those of the batch itself, of the same models
            if name in options and not options[name].isfinite().all():
                return f"{name}, of mismatched completions, is {_first_nonfinite(options[name])}"
        if self._requires.reference == "hidden":
            parts = [options["reference"], options.get("reference_weight"), options.get("reference_bias")]
            if not all(part.isfinite().all() for part in parts if part is not None):
                return "the reference's hidden states or LM head are not finite"
        losses = score.losses.detach()
        if not losses.isfinite().all():
            return f"{self.objective.name} of finite log-probabilities and columns is {_first_nonfinite(losses)}"
        return "a term added to the objective, or the batch of another process, is not finite"

    def _names_of_responses(self, count: int) -> list[str]:
        names = [f"response {row}" for row in range(count)]
        for role, rows in roles_of(self._sources, count).items():
            names[rows] = [f"response {role!r} of row {row}" for row in range(len(names[rows]))]
        return [f"{name} of the batch" for name in names]

    def _log_means(self, totals: dict[str, tuple[float, float]]) -> None:
        """Puts the means of all processes where TRL's `log` takes them."""
        mode = "train" if self.model.training else "eval"
        tokens, _ = totals.pop("num_tokens")
        if totals.pop("unscored")[0]:
            logger.warning(
                f"{self._moment()}: a batch without one scored token; its responses are empty, or cut off by max_length"
            )
        if mode == "train":
            self._total_train_tokens += int(tokens) // self._tp_size
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        means_of = {name: total / weight for name, (total, weight) in totals.items() if weight and name != "nonfinite"}
        found = {name: value for name, value in means_of.items() if not math.isnan(value)}  # JSON has no NaN
        if self._requires.kind == "point" and {"rewards/chosen", "rewards/rejected"} <= found.keys():
            found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
        for name, value in found.items():
            self._metrics[mode][name].append(value)


def _for_model(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What of a batch is the model's."""
    return {**{name: value for name, value in inputs.items() if name not in _OURS}, "use_cache": False}


def _per_response(values: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Sums over the tokens of each response, [R]."""
    return sum_responses(values if cu_seqlens is None else values.reshape(-1), cu_seqlens)


def _first_nonfinite(values: Tensor) -> str:
    """The first value that is not finite, and where it is."""
    where = tuple((~values.isfinite()).nonzero()[0].tolist())
    return f"{values[where].item()} at {list(where)}"


def _in_rows(values: Tensor, groups: Tensor) -> Tensor:
    """Values [R] of responses as [G, K], the rows filled up with NaN."""
    counts = groups.bincount()
    rows = values.new_full((len(counts), int(counts.max())), torch.nan)
    rows[torch.arange(rows.shape[1], device=values.device) < counts[:, None]] = values
    return rows


class _Absent(PreTrainedModel):  # type: ignore[misc]
    """Stands where TRL's constructor would load a reference model that nobody reads, and is dropped after it."""

    config_class = PretrainedConfig

    def __init__(self) -> None:
        super().__init__(PretrainedConfig())
        self.lm_head = torch.nn.Linear(1, 1, bias=False)  # what patches heads, and wraps parameters, finds one

    def get_output_embeddings(self) -> torch.nn.Module:
        """Its head of one number."""
        return self.lm_head

    def forward(self) -> None:
        """Nothing: it is never run."""


@contextlib.contextmanager
def _without_packing(args: PreferenceConfig) -> Iterator[None]:
    """Hides `padding_free` from TRL's constructor, which would say that it cannot do it."""
    packed, args.padding_free = args.padding_free, False
    try:
        yield
    finally:
        args.padding_free = packed


def _paper_of(objective: Objective) -> dict[str, str]:
    """What the model card says of an objective."""
    if objective.paper is None:
        return {}
    page = entry(objective)
    return {"id": objective.paper, "title": page.title or page.summary}


def _id_of(model: Any) -> str:
    return model if isinstance(model, str) else str(get_config_model_id(model.config))


def _load_processing_class(model: Any, args: PreferenceConfig) -> Any:
    revision = (args.model_init_kwargs or {}).get("revision") if isinstance(model, str) else None
    return AutoProcessor.from_pretrained(_id_of(model), revision=revision, trust_remote_code=args.trust_remote_code)


def _is_to_be_copied(model: Any, args: PreferenceConfig, peft_config: Any) -> bool:
    """Whether the reference is a copy of the policy: not where adapters are switched off, or nothing is kept."""
    if isinstance(model, str):  # which TRL loads a second time
        return False
    return not (peft_config is not None or is_peft_model(model) or args.precompute_ref_log_probs)


def _after_forward(model: Any, hidden: Tensor, tensors: HeadTensors) -> dict[str, Any]:
    """The head of a model whose forward pass is over, as arguments of `preference_loss`.

    FSDP frees what it gathered for the forward pass; the module has its parts then, which are gathered for the loss.
    """
    weight, bias = tensors.weight, tensors.bias
    if weight is not None and not isinstance(weight, DTensor) and not weight.untyped_storage().size():
        output = find_causal_lm(model).get_output_embeddings()
        if not isinstance(output.weight, DTensor):
            raise RuntimeError(
                "reference: the weight of its head was freed after its forward pass and cannot be gathered again; "
                "shard it with FSDP2 (fully_shard, fsdp_version 2), or leave the reference whole"
            )
        weight = output.weight.to(hidden.dtype)
        bias = None if getattr(output, "bias", None) is None else output.bias.to(hidden.dtype)
    return {"reference_weight": weight, "reference_bias": bias}
