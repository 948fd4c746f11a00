"""The process that is a vLLM engine: scheduler, worker and this loop in one, unless the environment says otherwise.

Requests are put in and stepped here, not through `LLM.generate`, so that a test can abort one, or submit another, while
the first is under way.
"""

from __future__ import annotations

import time
from typing import Any

from tests.engines.wire import Answer, Line, called

IDLE_S = 0.0005  # after a step that brought nothing (a load is under way): others need the interpreter


def keep_prefix_cache() -> None:
    """vLLM turns its prefix cache off for latent attention on a CPU without AMX, though the kernels that it falls back
    to are right after a prefix. What a connector brings must equal a hit in the engine's own cache (a full prefill
    rounds otherwise, and tokens differ), so tests need that hit."""
    from vllm.platforms import current_platform

    platform = type(current_platform)
    update = platform.check_and_update_config.__func__

    def updated(cls: type, config: Any) -> None:
        asked = config.cache_config.enable_prefix_caching
        update(cls, config)
        config.cache_config.enable_prefix_caching = asked

    platform.check_and_update_config = classmethod(updated)


class Vllm:
    def __init__(self, line: Line, arguments: dict[str, Any]) -> None:
        from vllm import SamplingParams
        from vllm.config import KVEventsConfig, KVTransferConfig
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        if arguments.pop("keep_prefix_cache", False):
            keep_prefix_cache()
        for name, kind in (("kv_transfer_config", KVTransferConfig), ("kv_events_config", KVEventsConfig)):
            if isinstance(arguments.get(name), dict):
                arguments[name] = kind(**arguments[name])
        self.line = line
        self._sampling = SamplingParams
        self.engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        self._internal: dict[str, str] = {}
        self._prefill: dict[str, Any] = {}
        self._since: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self._so_far: dict[str, Any] = {}
        self._watch_prefills()

    def _watch_prefills(self) -> None:
        """An output tells cached tokens in all; what the scheduler says of them passes by here."""
        processor = self.engine.output_processor
        process = processor.process_outputs

        def watched(outputs: list[Any], *more: Any, **named: Any) -> Any:
            for output in outputs:
                if output.prefill_stats is not None:
                    self._prefill[output.request_id] = output.prefill_stats
            return process(outputs, *more, **named)

        processor.process_outputs = watched

    def submit(self, prompts: list[dict[str, Any]]) -> None:
        for prompt in prompts:
            given: dict[str, Any] = {"prompt_token_ids": prompt["tokens"]}
            if prompt["salt"] is not None:
                given["cache_salt"] = prompt["salt"]
            extra = {"extra_args": {"kv_transfer_params": prompt["extra"]}} if prompt["extra"] else {}
            params = self._sampling(temperature=0.0, max_tokens=prompt["max_tokens"], ignore_eos=True, **extra)
            name = prompt["id"]
            self._since[name] = time.monotonic()
            self._internal[name] = self.engine.add_request(name, given, params)

    def abort(self, names: list[str]) -> None:
        under_way = [name for name in names if name in self._since]
        self.engine.abort_request(under_way)
        for name in under_way:
            self._finish(name, "abort")

    def _finish(self, name: str, why: str) -> None:
        output = self._so_far.pop(name, None)
        stats = self._prefill.pop(self._internal.pop(name), None)
        since, first = self._since.pop(name), self._first.pop(name, None)
        self.line.answer(
            Answer(
                id=name,
                tokens=tuple(output.outputs[0].token_ids) if output else (),
                finish=why,
                cached=(output.num_cached_tokens or 0) if output else 0,
                local=stats.num_local_cached_tokens if stats else None,
                external=stats.num_external_cached_tokens if stats else None,
                first_token_s=None if first is None else first - since,
                took_s=time.monotonic() - since,
            )
        )

    def busy(self) -> bool:
        """Whether a step has something to do. A scheduler in this process also clears what finished, and is told by
        its connector when saves are done, in steps of its own; one in another process does that by itself."""
        core = getattr(self.engine.engine_core, "engine_core", None)
        return self.engine.has_unfinished_requests() or (core is not None and core.scheduler.has_requests())

    def step(self) -> None:
        outputs = [output for output in self.engine.step() if output.request_id in self._since]
        for output in outputs:
            name = output.request_id
            self._so_far[name] = output
            if name not in self._first and output.outputs[0].token_ids:
                self._first[name] = time.monotonic()
                self.line.say("first", id=name)
            if output.finished:
                self._finish(name, output.outputs[0].finish_reason)
        if not outputs:
            time.sleep(IDLE_S)


def main() -> None:
    line = Line()
    start = time.monotonic()
    wanted = line.take(wait=True)
    assert wanted is not None and wanted["do"] == "start"
    vllm = Vllm(line, wanted["arguments"])
    line.say("started", took_s=time.monotonic() - start)
    while True:
        wanted = line.take(wait=not vllm.busy())
        if wanted is None:
            vllm.step()
        elif wanted["do"] == "stop":
            break
        elif wanted["do"] == "submit":
            vllm.submit(wanted["prompts"])
        elif wanted["do"] == "abort":
            vllm.abort(wanted["ids"])
        else:
            line.say("called", id=wanted["id"], **called(wanted["what"], vllm.engine, wanted["given"]))
    vllm.engine.engine_core.shutdown()
    line.say("stopped")


if __name__ == "__main__":
    main()
