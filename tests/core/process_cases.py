"""The processes that the tests of the core run over, each with several sets of options."""

import torch

from tweed import processes

GAUSSIAN = {
    "VP": processes.VP(),
    "VP-wide": processes.VP(beta_min=0.5, beta_max=30.0),
    "VP-constant": processes.VP(beta_min=2.0, beta_max=2.0),
    "SubVP": processes.SubVP(),
    "SubVP-mild": processes.SubVP(beta_min=0.2, beta_max=8.0),
    "Cosine": processes.Cosine(),
    "Cosine-0": processes.Cosine(offset=0.0),
    "VE": processes.VE(),
    "VE-300": processes.VE(sigma_min=0.002, sigma_max=300.0),
    "EDM": processes.EDM(),
    "EDM-20": processes.EDM(sigma_min=0.01, sigma_max=20.0),
    "RectifiedFlow": processes.RectifiedFlow(),
    "FromBetas-linear": processes.FromBetas.linear(),
    "FromBetas-scaled": processes.FromBetas.scaled_linear(1000, zero_terminal_snr=True),
    "FromBetas-cosine": processes.FromBetas.cosine(100),
    "FromBetas-1": processes.FromBetas([0.7]),
    "FromBetas-terminal": processes.FromBetas([0.1, 0.4, 1.0]),
    "one-sided-linear": processes.Interpolant(one_sided=True),
    "one-sided-trigonometric": processes.Interpolant("trigonometric", one_sided=True),
    "one-sided-vp": processes.Interpolant("vp", one_sided=True),
}
ENDPOINT = {
    "MeanReverting": processes.MeanReverting(),
    "MeanReverting-linear": processes.MeanReverting(noise=0.5, remainder=0.05, schedule="linear"),
    "MeanReverting-constant": processes.MeanReverting(noise=1.0, remainder=0.01, schedule="constant"),
    "OUVE": processes.OUVE(),
    "OUVE-stiff": processes.OUVE(stiffness=4.0, sigma_min=0.1, sigma_max=1.5),
    "Residual": processes.Residual(),
    "Residual-average": processes.Residual("average", "average", noise=0.01),
    "Residual-increased": processes.Residual("increased", "decreased", noise=0.5),
    "Resfusion": processes.Resfusion(),
    "Resfusion-cosine": processes.Resfusion.cosine(50),
    "Resfusion-VP": processes.Resfusion(processes.VP()),
}
LINEAR = GAUSSIAN | ENDPOINT
TWO_SIDED = {
    f"{path}-{latent}-{scale}": processes.Interpolant(path, latent, scale)
    for path, latent, scale in (
        ("linear", "none", 1.0),
        ("linear", "brownian", 2.0),
        ("linear", "quadratic", 1.0),
        ("linear", "sine", 0.5),
        ("linear", "sigmoid", 1.0),
        ("trigonometric", "none", 1.0),
        ("trigonometric", "brownian", 1.0),
        ("trigonometric", "quadratic", 2.0),
        ("trigonometric", "sine", 0.8),
        ("encoder-decoder", "sine", 1.0),
        ("mirror", "brownian", 1.0),
        ("mirror", "sigmoid", 2.0),
    )
}
EVERY = LINEAR | TWO_SIDED


def inner(n: int = 257, low: float = 1e-3, high: float = 1.0 - 1e-3) -> torch.Tensor:
    """Times inside (0, 1), float64, that miss the joints of piecewise schedules."""
    u = (torch.arange(n, dtype=torch.float64) + 0.437) / n
    return low + (high - low) * u
