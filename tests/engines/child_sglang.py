"""The process that is an SGLang engine: tokenizer manager and this loop; scheduler and detokenizer are its children."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tests.engines.wire import Answer, Line, called


class Sglang:
    def __init__(self, line: Line, arguments: dict[str, Any]) -> None:
        from sglang.srt.entrypoints.engine import Engine

        self.line = line
        self.engine = Engine(**arguments)
        self.loop = self.engine.loop
        self._under_way: set[asyncio.Task[None]] = set()

    def submit(self, prompts: list[dict[str, Any]]) -> None:
        for prompt in prompts:
            task = self.loop.create_task(self._one(prompt))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _one(self, prompt: dict[str, Any]) -> None:
        since, first, last = time.monotonic(), None, None
        sampling = {"temperature": 0.0, "max_new_tokens": prompt["max_tokens"], "ignore_eos": True}
        why = "error"
        try:
            outputs = await self.engine.async_generate(
                input_ids=prompt["tokens"],
                sampling_params=sampling,
                rid=prompt["id"],
                cache_salt=prompt["salt"],
                stream=True,
            )
            async for output in outputs:
                last = output
                if first is None:
                    first = time.monotonic()
                    self.line.say("first", id=prompt["id"])
            why = (last["meta_info"]["finish_reason"] or {}).get("type", "error") if last else "error"
        except Exception as error:
            why = "abort" if "abort" in str(error).lower() else f"error: {error}"
        meta = last["meta_info"] if last else {}
        # device and host are the engine's own; what came from storage lies in `storage`.
        parts = meta.get("cached_tokens_details") or {}
        cached = meta.get("cached_tokens", 0)
        external = parts.get("storage", 0)
        self.line.answer(
            Answer(
                id=prompt["id"],
                tokens=tuple(last["output_ids"]) if last else (),
                finish=why,
                cached=cached,
                local=cached - external,
                external=external,
                first_token_s=None if first is None else first - since,
                took_s=time.monotonic() - since,
            )
        )

    def abort(self, names: list[str]) -> None:
        for name in names:
            self.engine.tokenizer_manager.abort_request(rid=name)


async def serve(line: Line, sglang: Sglang) -> None:
    while True:
        wanted = await asyncio.to_thread(line.take, True)
        assert wanted is not None
        if wanted["do"] == "stop":
            return
        if wanted["do"] == "submit":
            sglang.submit(wanted["prompts"])
        elif wanted["do"] == "abort":
            sglang.abort(wanted["ids"])
        else:
            # In a thread, so that what is called may ask the engine's loop for something.
            result = await asyncio.to_thread(called, wanted["what"], sglang.engine, wanted["given"])
            line.say("called", id=wanted["id"], **result)


def main() -> None:
    line = Line()
    start = time.monotonic()
    wanted = line.take(wait=True)
    assert wanted is not None and wanted["do"] == "start"
    sglang = Sglang(line, wanted["arguments"])
    line.say("started", took_s=time.monotonic() - start)
    sglang.loop.run_until_complete(serve(line, sglang))
    sglang.engine.shutdown()
    line.say("stopped")


if __name__ == "__main__":
    main()
