"""Write text with a masked diffusion model."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tweed.cli._console import console, print_json
from tweed.errors import IncompatibleError, InputError

EXAMPLES = (
    "tweed train text && tweed text runs/text --prompt 'json.loads' --length 48",
    "tweed text runs/text --infill 'Return the [MASK][MASK] of the object.'",
    "tweed text runs/text --prompt 'Open a file' --solver first-hitting --temperature 0.8 --n 3",
    "tweed text path/to/llada --prompt 'Why is the sky blue?' --chat --length 128 --cache dual --threshold 0.9",
    "tweed text path/to/dream --prompt 'def add(a, b):' --guide path/to/qwen2 --cache free",
)


def run(
    model: Annotated[str, tyro.conf.Positional],
    *,
    prompt: str = "",
    infill: str | None = None,
    n: int = 1,
    length: int = 64,
    solver: Literal["confidence", "first-hitting"] = "confidence",
    steps: int | None = None,
    block: int = 32,
    temperature: float = 0.0,
    confidence: Literal["probability", "margin", "entropy", "random"] = "probability",
    remask: Literal["low_confidence", "rcr"] = "low_confidence",
    threshold: float | None = None,
    tokens_per_call: int = 1,
    cache: Literal["none", "free", "prefix", "dual"] = "none",
    guide: str | None = None,
    accept: Literal["greedy", "top-k", "relative", "threshold", "sampling"] = "top-k",
    scale: float = 1.0,
    target_length: int | None = None,
    chat: bool = False,
    seed: int = 0,
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16"] = "float32",
    out: Path | None = None,
    json: bool = False,
) -> int:
    """Write text with a masked diffusion model, and show it as it is denoised.

    What is to be written is masked; the model fills the masks in, the surest first, block after block. On a terminal the text
    appears as it comes; elsewhere stdout gets the finished text alone. Speed, calls and positions are told on stderr.

    Args:
        model: A checkpoint's folder, such as runs/text of `tweed train text`; or a folder or Hub id of a LLaDA or Dream model.
        prompt: What the text begins with.
        infill: A text with [MASK] for each token that is to be filled in, instead of --prompt.
        n: How many texts.
        length: Tokens to write.
        solver: confidence fills the surest masks first; first-hitting draws them in random order, exactly.
        steps: Steps in all, for confidence; as many as tokens by default. Fewer are faster and worse.
        block: Tokens of a block, for confidence; blocks are written from left to right.
        temperature: Of the drawn tokens; 0 takes the most probable. First-hitting usually wants 1.
        confidence: What sureness is.
        remask: rcr may take back tokens that were written with little confidence.
        threshold: Write all tokens of at least this confidence at once, instead of --steps.
        tokens_per_call: Tokens of an evaluation, for first-hitting.
        cache: Keys and values that are kept: free freezes what is written; prefix and dual are Fast-dLLM's.
        guide: A causal model with the same vocabulary (a name or folder, as MODEL), which judges drafts from left to right.
        accept: What the guide accepts.
        scale: Classifier-free guidance towards the prompt; 1 for none.
        target_length: Read and write longer texts than the model was trained on, by a larger rotary base.
        chat: Put the prompt into the model's own template of a conversation.
        seed: Text i is the same under the same seed.
        device: cpu, cuda, cuda:1 ...
        dtype: Of the weights of LLaDA and Dream models.
        out: A file for the texts, besides stdout.
        json: Print texts and figures as JSON on stdout.
    """
    import torch

    from tweed.solvers.base import Problem

    if n < 1 or length < 1 or block < 1 or (steps is not None and steps < 1):
        raise InputError(
            f"n, length, block, steps: {n}, {length}, {block}, {steps} were given; expected positive numbers"
        )
    if infill is not None and (prompt or chat):
        raise InputError("infill: give either --infill or --prompt")
    denoiser = _denoiser(model, device, dtype)
    tokenizer = _tokenizer(denoiser, model)
    mask = denoiser.process.mask
    row = _row(tokenizer, mask, model, prompt, infill, length, chat)
    masks = row.count(mask)
    denoiser = _fitted(denoiser, len(row), target_length)
    given = len(row) - masks if infill is None else 0
    if scale != 1.0:
        from tweed.tokens import TokenClassifierFree

        if not given:
            raise InputError("scale: guidance needs a --prompt to guide towards")
        guided: Any = TokenClassifierFree(denoiser, scale, given)
    else:
        guided = denoiser
    chosen = _solver(locals(), tokenizer.end)
    x = torch.tensor([row] * n, device=device)
    total = _steps(chosen, steps, masks, block, row, mask)
    chosen.check(denoiser.process)
    problem = Problem(guided.start(), tuple(1.0 - i / total for i in range(total + 1)), {}, seed)
    begun = time.perf_counter()
    with torch.no_grad(), _shown(tokenizer, mask, not json) as observe:
        done = chosen.decode(problem, x, observe)
    seconds = time.perf_counter() - begun
    texts = [_text(tokenizer, each, given, infill is not None, tokenizer.end) for each in done.tokens.tolist()]
    facts = {
        "tokens_per_second": n * masks / max(seconds, 1e-9),
        "seconds": seconds,
        "calls": done.calls,
        "positions": done.positions,
        **dict(done.extra),
    }
    if out is not None:
        from tweed.training.files import write_bytes

        write_bytes(out, "".join(f"{text}\n" for text in texts).encode())
    if json:
        print_json({"texts": texts, **facts})
        return 0
    for number, text in enumerate(texts):
        if n > 1:
            console(stderr=True).print(f"text {number + 1}:", markup=False)
        print(text)
    told = ", ".join(f"{name.replace('_', ' ')} {int(value)}" for name, value in dict(done.extra).items())
    console(stderr=True).print(
        f"{facts['tokens_per_second']:,.1f} tokens/s, {done.calls} calls, {done.positions} positions"
        + (f", {told}" if told else ""),
        markup=False,
    )
    return 0


def _denoiser(name: str, device: str, dtype: str) -> Any:
    import torch

    from tweed.core.token_denoiser import TokenDenoiser
    from tweed.tokens.pretrained import is_pretrained, load_pretrained
    from tweed.training import bundled, load

    ours = name in bundled() or (Path(name).is_dir() and not is_pretrained(name))
    if ours:
        made: Any = load(name).to(device)
    else:
        made = load_pretrained(name, device=device, dtype=getattr(torch, dtype))
    if not isinstance(made, TokenDenoiser):
        raise IncompatibleError(
            f"model: {name} makes no text; expected a model of tokens (`tweed sample {name}` draws from it)"
        )
    return made


def _tokenizer(denoiser: Any, name: str) -> Any:
    if denoiser.tokenizer is None:
        raise InputError(f"model: {name} has no tokenizer.json; expected a model of text")
    if not hasattr(denoiser.process, "mask"):
        raise InputError(f"model: {name} has no mask; expected a masked diffusion model")
    return denoiser.tokenizer


def _row(tokenizer: Any, mask: int, model: str, prompt: str, infill: str | None, length: int, chat: bool) -> list[int]:
    if infill is not None:
        row: list[int] = []
        for number, part in enumerate(infill.split("[MASK]")):
            row += ([mask] if number else []) + tokenizer.encode(part)
        if mask not in row:
            raise InputError("infill: it has no [MASK]; expected one for each token that is to be filled in")
        return row
    if chat:
        from tweed.tokens.pretrained import chat as conversation

        prompt = conversation(model, [{"role": "user", "content": prompt}])
    return tokenizer.encode(prompt) + [mask] * length


def _fitted(denoiser: Any, length: int, target: int | None) -> Any:
    from tweed.tokens.rope_scaling import extended

    if target is not None:
        if length > target:
            raise InputError(
                f"target_length: {target} was given; expected at least the {length} tokens of prompt and answer"
            )
        return extended(denoiser, target)
    context = getattr(denoiser.network, "context", None)
    if context is not None and length > context:
        raise InputError(
            f"prompt, length: {length} tokens in all were given; expected at most {context}, what the model was trained on "
            "(or give --target-length)"
        )
    return denoiser


def _solver(options: dict[str, Any], end: int | None) -> Any:
    from tweed.tokens import Blockwise, DualCache, FirstHitting, FreeCache, Guided, NoCache, PrefixCache
    from tweed.tokens.remasking import BY_NAME

    caches = {"none": NoCache, "free": FreeCache, "prefix": PrefixCache, "dual": DualCache}
    caching = caches[options["cache"]]()
    stop = end if options["infill"] is None else None
    if options["guide"] is not None:
        judge = _denoiser(options["guide"], options["device"], options["dtype"])
        _same_words(judge.tokenizer, options["tokenizer"])
        return Guided(judge, options["accept"], temperature=options["temperature"], stop=stop, caching=caching)
    if options["solver"] == "first-hitting":
        if options["cache"] != "none":
            raise InputError(
                f"cache: {options['cache']!r} was given with first-hitting, which writes anywhere; expected none"
            )
        return FirstHitting(options["tokens_per_call"], temperature=options["temperature"])
    return Blockwise(
        options["block"],
        options["confidence"],
        BY_NAME[options["remask"]](),
        options["temperature"],
        options["threshold"],
        caching,
        stop,
    )


def _same_words(judge: Any, own: Any) -> None:
    """Raise where a guide's tokens are others; special ones may differ, as between Dream and the Qwen that it was made from."""
    if judge is None:
        raise InputError("guide: it has no tokenizer.json; expected one with the model's own vocabulary")
    if judge.inner.get_vocab(with_added_tokens=False) != own.inner.get_vocab(with_added_tokens=False):
        raise InputError(
            f"guide: its vocabulary, of {judge.size} tokens, is another; expected the model's own, of {own.size}"
        )


def _steps(solver: Any, steps: int | None, masks: int, block: int, row: list[int], mask: int) -> int:
    """Steps in all, a multiple of the blocks that there are."""
    if solver.adaptive:
        if steps is not None:
            raise InputError(f"steps: {steps} was given; this way of decoding takes as many as it needs")
        return 1
    span = len(row) - row.index(mask) - row[::-1].index(mask)
    blocks = -(-span // block)
    return max(round((masks if steps is None else steps) / blocks), 1) * blocks


@contextmanager
def _shown(tokenizer: Any, mask: int, wanted: bool) -> Iterator[Any]:
    """An observer that shows the first row as it is denoised, where a person looks."""
    screen = console()
    if not wanted or not screen.is_terminal:
        yield None
        return
    from rich.live import Live
    from rich.text import Text

    with Live(console=screen, transient=True, refresh_per_second=12) as live:

        def observe(x: Any, t: Any, i: int) -> None:
            live.update(Text(_pieces(tokenizer, x[0].tolist(), mask)))

        yield observe


def _pieces(tokenizer: Any, row: list[int], mask: int) -> str:
    """The text of a row, a dot for each mask."""
    said, run = [], []
    for token in [*row, mask]:
        if token != mask:
            run.append(token)
            continue
        said.append(tokenizer.decode(run) + "·")
        run = []
    return "".join(said)[:-1]


def _text(tokenizer: Any, row: list[int], given: int, infilled: bool, end: int | None) -> str:
    if not infilled and end is not None and end in row[given:]:
        row = row[: given + row[given:].index(end)]
    return tokenizer.decode(row)
