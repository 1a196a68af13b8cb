"""A program of its own, run by `tweed.data.speech`: texts to speech by espeak-ng, in a process that ends afterwards.

espeak-ng keeps its place in vibrato and noise between calls, so that a text sounds different each time; in a fresh
process the same texts in the same order give the same samples. Reads from stdin a JSON object with `library`, `data`,
`voice` and `texts` (each `[text, words a minute, pitch]`); writes to stdout a line of JSON with the `rate` in hertz and
the numbers of samples, then all samples as 16-bit integers of this machine. Needs nothing but the standard library.
"""

import ctypes
import json
import sys

RETRIEVAL, CHARACTERS, UTF8, SPEED, PITCH = 1, 1, 1, 1, 3


def main() -> int:
    wanted = json.load(sys.stdin)
    library = ctypes.CDLL(wanted["library"])
    spoken = bytearray()

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    def receive(samples, count, events):
        if samples and count > 0:
            spoken.extend(ctypes.string_at(samples, 2 * count))
        return 0

    rate = library.espeak_Initialize(RETRIEVAL, 0, wanted["data"].encode(), 0)
    if rate <= 0:
        print("espeak-ng does not start", file=sys.stderr)
        return 1
    library.espeak_SetSynthCallback(receive)
    if library.espeak_SetVoiceByName(wanted["voice"].encode()) != 0:
        print(f"espeak-ng has no voice {wanted['voice']!r}", file=sys.stderr)
        return 1
    lengths = []
    for text, speed, pitch in wanted["texts"]:
        before, encoded = len(spoken), text.encode()
        library.espeak_SetParameter(SPEED, int(speed), 0)
        library.espeak_SetParameter(PITCH, int(pitch), 0)
        size = ctypes.c_size_t(len(encoded) + 1)
        if library.espeak_Synth(encoded, size, 0, CHARACTERS, 0, UTF8, None, None) != 0:
            print(f"espeak-ng does not say {text!r}", file=sys.stderr)
            return 1
        library.espeak_Synchronize()
        lengths.append((len(spoken) - before) // 2)
    sys.stdout.buffer.write(json.dumps({"rate": rate, "lengths": lengths}).encode() + b"\n" + bytes(spoken))
    return 0


if __name__ == "__main__":
    sys.exit(main())
