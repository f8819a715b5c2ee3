"""lm-evaluation-harness on a live version: its tasks, prompts, filters and metrics; our batched passes.

Needs the extra ``eval`` (lm-eval 0.4.13 or newer); nothing else of the project imports this module.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate
from lm_eval.models.utils import handle_stop_sequences
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from errata.editing.digest import digest_file, digest_json
from errata.editing.errors import UserError
from errata.editing.wording import counted
from errata.evaluation.preservation.battery import Item, Outcomes
from errata.evaluation.preservation.tasks import available, write_tasks
from errata.evaluation.sampling import SamplingConfig, SamplingEngine, seed_of

logger = logging.getLogger(__name__)

HARNESS_TASKS = Path(lm_eval.tasks.__file__).parent
_DEFAULT_LENGTH = 2048
_DEFAULT_NEW_TOKENS = 256
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class EngineLM(TemplateLM):
    """The harness's language model over a `SamplingEngine`: whatever weights the model has now.

    Tokenization and truncation are those of the harness's own Hugging Face model: BOS where the tokenizer puts one,
    contexts cut on the left to the model's length.
    """

    def __init__(self, engine: SamplingEngine, *, seed: int = 0) -> None:
        super().__init__()
        self.engine = engine
        self.seed = seed
        self.tokenizer = engine.model.text.tokenizer
        config = engine.model.hf.config
        self.max_length = int(getattr(config, "max_position_embeddings", None) or _DEFAULT_LENGTH)

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: BOS, else end of text."""
        bos = self.tokenizer.bos_token_id
        return int(bos) if bos is not None else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's caches."""
        return self.engine.model.name.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; BOS as the tokenizer does by itself, unless the text brings it or it is not wanted."""
        text = self.engine.model.text
        # a template that the harness has filled is read as such
        bare = text.encode_marked(string)
        ids = text.bos + bare
        if add_special_tokens is False:
            return bare
        return bare if text.bos and bare[: len(text.bos)] == text.bos else ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation in the model's chat template."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        rows = []
        for _pair, context, continuation in requests:
            room = self.max_length + 1 - len(continuation)
            if room < 1:
                raise UserError(
                    f"a choice of {counted(len(continuation), 'token')} is longer than the model's {self.max_length}"
                )
            rows.append((context[-room:], continuation))
        return [(sum(scored.logprobs), all(scored.hits)) for scored in self.engine.score(rows)]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Log-probability of whole texts, each token once, in windows of the model's length."""
        windows: list[Any] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            mine = [(None, *make_disjoint_window(window)) for window in rolling]
            windows += mine
            owners += [number] * len(mine)
        totals = [0.0] * len(requests)
        for number, (value, _greedy) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += value
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Continuations up to a stop string; greedy unless the task samples (then seeded by prompt and repeat)."""
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            config, until = _generation(request.args[1])
            groups[(config, tuple(until))].append(number)
        answers = [""] * len(requests)
        asked: dict[str, int] = defaultdict(int)
        for (config, until), numbers in groups.items():
            room = self.max_length - config.max_new_tokens
            if room < 1:
                raise UserError(
                    f"a task asks for {config.max_new_tokens} new tokens; the model holds {self.max_length}"
                )
            contexts = [requests[number].args[0] for number in numbers]
            seeds = []
            for context in contexts:
                seeds.append(seed_of(self.seed, context, asked[context]))
                asked[context] += 1
            # most models end an answer with their own token; the engine stops there by itself
            prompts = [self.tok_encode(context)[-room:] for context in contexts]
            for number, sample in zip(
                numbers, self.engine.sample(prompts, config, seeds=seeds, until=until), strict=True
            ):
                answers[number] = sample.text
        return answers


def _generation(given: dict[str, Any]) -> tuple[SamplingConfig, list[str]]:
    """The harness's generation settings as ours, and the stop strings."""
    limit = next((int(given[name]) for name in _LIMITS if given.get(name) is not None), _DEFAULT_NEW_TOKENS)
    temperature = float(given.get("temperature") or 0.0)
    sampled = bool(given.get("do_sample", temperature > 0))
    config = SamplingConfig(
        temperature=(temperature or 1.0) if sampled else 0.0,
        top_p=float(given.get("top_p") or 1.0),
        top_k=int(given.get("top_k") or 0),
        max_new_tokens=limit,
    )
    return config, handle_stop_sequences(list(_as_list(given.get("until"))), eos=None)


def _as_list(value: Any) -> Sequence[str]:
    return [value] if isinstance(value, str) else list(value or [])


class HarnessSuite:
    """One benchmark of the harness, its subtasks pooled: a group's score is the mean over all its items."""

    def __init__(
        self, name: str, tasks: dict[str, Any], *, documents: str, fewshot: int | None = None, chat: bool = False
    ) -> None:
        """``documents`` names what the tasks ask and show, so that outcomes on others are told apart."""
        self.name = name
        self.chat = chat
        self._asked = [documents, fewshot, chat, lm_eval.__version__]
        self._tasks = tasks
        for task in tasks.values():
            if fewshot is not None:
                task.set_config(key="num_fewshot", value=fewshot)
            task.set_fewshot_seed(seed=1234)
        self.items: list[Item] = [(sub, at) for sub, task in tasks.items() for at in range(len(task.eval_docs))]
        self.versions = {sub: str(task.VERSION) for sub, task in tasks.items()}

    @property
    def fingerprint(self) -> str:
        """Of the harness's and the tasks' versions, their documents and settings."""
        return digest_json(["harness", 1, self._asked, self.versions])

    def run(self, engine: SamplingEngine, items: Sequence[Item], *, seed: int = 0) -> Outcomes:
        """Put the items to the model; per metric one value for each."""
        chosen: dict[str, list[int]] = defaultdict(list)
        for sub, at in items:
            chosen[sub].append(at)
        tasks = {sub: self._tasks[sub] for sub in chosen}
        for task in tasks.values():
            task._instances = None  # the harness adds to what an earlier call left
        # its progress bars cannot be turned off otherwise; what goes through logging is heard
        with contextlib.redirect_stderr(io.StringIO()):
            results = evaluate(
                EngineLM(engine, seed=seed),
                {"tasks": tasks, "groups": {}, "group_map": {}},
                samples=dict(chosen),
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=self.chat,
            )
        assert results is not None
        values: dict[str, dict[Item, Any]] = defaultdict(dict)
        for sub, logged in results["samples"].items():
            for sample in logged:
                for metric in sample["metrics"]:
                    name = metric if sample["filter"] == "none" else f"{metric},{sample['filter']}"
                    values[name][(sub, int(sample["doc_id"]))] = _plain(sample[metric])
        return {name: [of[item] for item in items] for name, of in values.items()}

    def aggregate(self, metric: str, values: Sequence[Any]) -> float:
        """The harness's own aggregation of a metric that is not a mean (F1, Matthews correlation)."""
        task = next(iter(self._tasks.values()))
        return float(task.aggregation()[metric.split(",")[0]](list(values)))

    def is_mean(self, metric: str) -> bool:
        """Whether the metric is the mean of its items' values."""
        task = next(iter(self._tasks.values()))
        rule = task.aggregation()[metric.split(",")[0]]
        return getattr(rule, "__name__", "") == "mean"


def _plain(value: Any) -> Any:
    """A metric's value as JSON can hold it."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value


def load_suites(
    names: Sequence[str],
    *,
    data: Path | None = None,
    fewshot: dict[str, int] | None = None,
    chat: bool = False,
    task_files: Path | None = None,
) -> tuple[list[HarnessSuite], tempfile.TemporaryDirectory[str]]:
    """Benchmarks by the harness's names: from a data directory where it has them, else from the hub.

    Args:
        data: see `errata.evaluation.preservation.tasks`; None takes everything from the hub.
        fewshot: worked examples by name, where not as many as the task says.
        chat: put questions through the model's chat template.
        task_files: a directory of further task files.

    Returns:
        The suites, and the directory that generated files live in while the suites are used.

    Raises:
        UserError: an unknown name, or a data set that cannot be had.
    """
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    held = tempfile.TemporaryDirectory(prefix="errata-tasks-")
    here = set(available(data)) if data is not None else set()
    local = [name for name in names if name in here]
    written = write_tasks(data, local, Path(held.name), harness_tasks=HARNESS_TASKS) if data is not None else {}
    managers: dict[bool, TaskManager] = {}
    suites = []
    for name in names:
        of_hub = name not in written
        if of_hub not in managers:
            paths = str(task_files) if of_hub and task_files is not None else None
            managers[of_hub] = TaskManager(include_path=paths if of_hub else held.name, include_defaults=of_hub)
        with contextlib.redirect_stderr(io.StringIO()):
            tasks = _load(managers[of_hub], name, [name] if of_hub else written[name], data)
        if of_hub:
            documents = digest_json({sub: str(task.dataset) for sub, task in tasks.items()})
        else:
            files = sorted(path for sub in written[name] for path in Path(held.name).glob(f"{sub}.*.jsonl"))
            documents = digest_json([digest_file(path) for path in files])
        shots = (fewshot or {}).get(name)
        suites.append(HarnessSuite(name, tasks, documents=documents, fewshot=shots, chat=chat))
    return suites, held


def _load(manager: TaskManager, name: str, tasks: list[str], data: Path | None) -> dict[str, Any]:
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise UserError(
            f"task {name!r} is unknown to lm-eval {lm_eval.__version__}; `lm_eval ls tasks` lists its names"
        )
    try:
        return dict(manager.load(tasks)["tasks"])
    except Exception as error:  # the hub client fails in many ways; to the user they mean the same
        where = "no data directory was given (--data)" if data is None else f"{str(data)!r} has no file for it"
        raise UserError(
            f"task {name!r}: {where} and it cannot be had from the hub ({type(error).__name__}: "
            f"{(str(error).splitlines() or [''])[0][:160]})"
        ) from error
