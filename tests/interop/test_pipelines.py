"""Real pipelines of diffusers with random weights: their models under our solvers, and our solvers in their loops."""

import json
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import pipelines as tiny

import tweed as tw
from tweed.errors import CheckpointError, IncompatibleError, InputError
from tweed.interop import DiffusersScheduler, from_diffusers, read_schedule

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

STEPS = 6
# Pipeline, the solver of ours that is its scheduler's, its guidance, and more arguments of its call.
CASES = {
    "dit": (tiny.dit, "DDIM", 3.0, {}),
    "stable-diffusion": (tiny.stable_diffusion, "DPMSolver(solver_type=midpoint)", 5.0, {}),
    "stable-diffusion, v": (lambda: tiny.stable_diffusion("v_prediction"), "DPMSolver(solver_type=midpoint)", 5.0, {}),
    "stable-diffusion-xl": (tiny.stable_diffusion_xl, "DDIM", 5.0, {}),
    "stable-diffusion-3": (tiny.stable_diffusion_3, "DDIM", 4.0, {}),
    "flux": (tiny.flux, "Euler(form=velocity)", 3.5, {}),
    "flux, not distilled": (lambda: tiny.flux(False), "DDIM", 1.0, {}),
    "pixart": (tiny.pixart, "DPMSolver(solver_type=midpoint)", 4.5, {"use_resolution_binning": False}),
}
PROMPTS, AGAINST = ["a cat, 3 dogs", "rain"], ["", "snow"]


def start(name):
    shape = (2, 4, 8, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def packed(x):
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def called(name, pipeline, latents, steps=STEPS, **more):
    """The pipeline's own loop, to latents where it can give them, else to images in [-1, 1]."""
    _, _, scale, extra = CASES[name]
    pipeline.set_progress_bar_config(disable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "dit":
            # It draws its own start; its parts are run by hand in `by_hand`.
            raise AssertionError
        given = {"prompt": PROMPTS, "height": 16, "width": 16, "num_inference_steps": steps, "guidance_scale": scale}
        given |= {"output_type": "latent", "latents": packed(latents) if "flux" in name else latents, **extra, **more}
        if "flux" not in name:
            given["negative_prompt"] = AGAINST
        return pipeline(**given).images


def dit_loop(pipeline, latents, steps=STEPS, scale=3.0):
    """What `DiTPipeline` does after it has drawn its start."""
    x, label = latents, torch.tensor([1, 2, 1000, 1000])
    pipeline.scheduler.set_timesteps(steps)
    for t in pipeline.scheduler.timesteps:
        answer = pipeline.transformer(torch.cat((x, x)), timestep=t.expand(4), class_labels=label).sample[:, :4]
        told, null = answer.chunk(2)
        x = pipeline.scheduler.step(null + scale * (told - null), t, x).prev_sample
    return x


def run(name, pipeline, latents, **more):
    with torch.no_grad():
        return dit_loop(pipeline, latents) if name == "dit" else called(name, pipeline, latents, **more)


@pytest.mark.parametrize("name", CASES)
def test_our_scheduler_makes_the_pictures_of_theirs(name):
    make, solver, _, _ = CASES[name]
    pipeline, latents = make(), start(name)
    theirs = run(name, pipeline, latents)
    pipeline.scheduler = DiffusersScheduler(solver, like=pipeline.scheduler)
    ours = run(name, pipeline, latents)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-4 * theirs.abs().max().item(), rtol=0)
    # Another solver makes others, which tend to the same as steps grow.
    if name != "dit":
        pipeline.scheduler = DiffusersScheduler("UniPC", like=pipeline.scheduler)
        assert (run(name, pipeline, latents) - theirs).abs().max() > 1e-3 * theirs.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_their_models_under_our_loop(name):
    make, solver, scale, _ = CASES[name]
    pipeline, latents = make(), start(name)
    theirs = run(name, pipeline, latents)
    denoiser = from_diffusers(pipeline, size=(16, 16))
    assert denoiser.event == (4, 8, 8)
    if name == "dit":
        cond, null = {"label": torch.tensor([1, 2])}, None
    else:
        cond, null = denoiser.prompt(PROMPTS, AGAINST if "flux" not in name else "", guidance=scale)
        assert all(len(value) == 2 for value in (*cond.values(), *null.values()))
    guided = tw.guidance.ClassifierFree(denoiser, scale, null=null) if null != {} and scale != 1.0 else denoiser
    scheduler = DiffusersScheduler(solver, like=pipeline.scheduler)
    scheduler.set_timesteps(STEPS)
    # Flux is run on a grid of its own, whose shift depends on the picture's size.
    times = denoiser.grid(denoiser.process, STEPS) if "flux" in name else scheduler._times
    ours = tw.sample(guided, latents, solver=tw.solvers.registry.parse(solver), times=times, cond=cond, gradients=False)
    ours = packed(ours) if "flux" in name else ours
    torch.testing.assert_close(ours, theirs, atol=1e-4 * theirs.abs().max().item(), rtol=0)


def _mu(pipeline):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    return calculate_shift(16)


def test_the_dynamic_shift_is_that_of_the_pipeline():
    pipeline = tiny.flux()
    denoiser = from_diffusers(pipeline, size=(16, 16))
    times = denoiser.grid(denoiser.process, STEPS)
    scheduler = DiffusersScheduler("DDIM", like=pipeline.scheduler)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / STEPS, STEPS), mu=_mu(pipeline))
    torch.testing.assert_close(times, torch.tensor(scheduler._times, dtype=torch.float64))
    pipeline.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / STEPS, STEPS), mu=_mu(pipeline))
    torch.testing.assert_close(times.float(), pipeline.scheduler.sigmas)


def test_unconditional_pixels():
    pipeline = tiny.ddpm()
    denoiser = from_diffusers(pipeline)
    assert (denoiser.event, denoiser.autoencoder, denoiser.pixels) == ((3, 8, 8), None, (8, 8))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        at = pipeline.unet(x, torch.tensor([499, 499])).sample
        torch.testing.assert_close(denoiser(x, 0.5).eps, at)
        samples = tw.sample(denoiser, 2, solver=tw.solvers.DPMSolver(), steps=4)
    assert torch.equal(denoiser.encode(samples), samples)
    assert torch.equal(denoiser.decode(samples), samples)
    alone = from_diffusers(pipeline.unet, scheduler=pipeline.scheduler)
    with torch.no_grad():
        assert torch.equal(alone(x, 0.5).eps, denoiser(x, 0.5).eps)


def test_pictures_and_latents():
    pipeline = tiny.stable_diffusion_3()
    denoiser = from_diffusers(pipeline)
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        mean = pipeline.vae.encode(pictures).latent_dist.mean
        z = denoiser.encode(pictures)
        torch.testing.assert_close(z, (mean - 0.1) * 0.2)
        torch.testing.assert_close(denoiser.decode(z), pipeline.vae.decode(mean).sample, atol=1e-5, rtol=0)
        drawn = denoiser.encode(pictures, seed=1)
    assert torch.equal(drawn, denoiser.encode(pictures, seed=1))
    assert not torch.equal(drawn, z)


@pytest.mark.parametrize("name", ["dit", "stable-diffusion", "flux"])
def test_there_and_back_through_a_folder(name, tmp_path):
    make, solver, _, _ = CASES[name]
    pipeline, latents = make(), start(name)
    pipeline.scheduler = DiffusersScheduler(solver, like=pipeline.scheduler)
    before = run(name, pipeline, latents)
    pipeline.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"][1] == "DiffusersScheduler"
    from diffusers import DiffusionPipeline

    again = DiffusionPipeline.from_pretrained(str(tmp_path))
    assert isinstance(again.scheduler, DiffusersScheduler)
    assert again.scheduler.solver == pipeline.scheduler.solver
    torch.testing.assert_close(run(name, again, latents), before)
    denoiser = from_diffusers(tmp_path)
    assert denoiser.process == from_diffusers(pipeline).process
    part = "unet" if name == "stable-diffusion" else "transformer"
    alone = from_diffusers(tmp_path / part, scheduler=again.scheduler)
    assert alone.pipeline is None
    # Weights that would have to be unpickled are not read.
    for weights in (tmp_path / part).glob("*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match="cannot be read"):
        from_diffusers(tmp_path / part, scheduler=again.scheduler)


def test_from_an_image_the_run_begins_in_the_middle():
    from diffusers import StableDiffusionImg2ImgPipeline

    pipeline = tiny.stable_diffusion()
    edited = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    edited.set_progress_bar_config(disable=True)
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    results = []
    for ours in (False, True):
        if ours:
            edited.scheduler = DiffusersScheduler("DPMSolver(solver_type=midpoint)", like=edited.scheduler)
        results.append(
            edited(
                "a cat", image=picture, strength=0.5, num_inference_steps=10, output_type="latent", guidance_scale=2.0,
                generator=torch.Generator().manual_seed(2),
            ).images
        )  # fmt: skip
    torch.testing.assert_close(results[1], results[0], atol=1e-4 * results[0].abs().max().item(), rtol=0)


def test_noise_follows_the_generator():
    pipeline, latents = tiny.stable_diffusion(), start("")
    pipeline.scheduler = DiffusersScheduler("DDIM(eta=1)", like=pipeline.scheduler)
    runs = [
        called("stable-diffusion", pipeline, latents, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert (runs[0] - runs[2]).abs().max() > 0.01


class TestMistakes:
    def test_solvers_that_do_not_fit(self):
        with pytest.raises(IncompatibleError, match="evaluates once"):
            DiffusersScheduler("Heun")
        with pytest.raises(InputError, match="DPMSolver"):
            DiffusersScheduler("DPMSolvr")

    def test_schedules_that_are_not_known(self):
        with pytest.raises(InputError, match="squaredcos_cap_v2"):
            read_schedule({"beta_schedule": "squaredcos"})
        with pytest.raises(InputError, match="prediction_type"):
            read_schedule({"beta_schedule": "linear", "prediction_type": "velocity"})
        with pytest.raises(InputError, match="beta_schedule"):
            read_schedule({"steps": 3})

    def test_the_loop_out_of_order(self):
        scheduler = DiffusersScheduler("DDIM")
        x = torch.zeros(1, 2)
        with pytest.raises(InputError, match="set_timesteps"):
            scheduler.step(x, 1, x)
        with pytest.raises(InputError, match="num_inference_steps"):
            scheduler.set_timesteps(0)
        scheduler.set_timesteps(1)
        with pytest.raises(InputError, match="timestep"):
            scheduler.step(x, 17, x)
        x = scheduler.step(x, scheduler.timesteps[0], x).prev_sample
        with pytest.raises(InputError, match="end"):
            scheduler.step(x, 0, x)

    def test_sources(self, tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read"):
            from_diffusers(tmp_path / "nothing")
        (tmp_path / "config.json").write_text('{"_class_name": "Wuerstchen"}')
        with pytest.raises(InputError, match="UNet2DModel"):
            from_diffusers(tmp_path)
        with pytest.raises(InputError, match="scheduler"):
            from_diffusers(tiny.ddpm().unet)
        with pytest.raises(InputError, match="Linear"):
            from_diffusers(torch.nn.Linear(1, 1), scheduler={"beta_schedule": "linear"})
        with pytest.raises(InputError, match="multiples of 2"):
            from_diffusers(tiny.stable_diffusion(), size=(15, 16))

    def test_conditions(self):
        denoiser = from_diffusers(tiny.stable_diffusion())
        x = torch.zeros(1, 4, 8, 8)
        with pytest.raises(IncompatibleError, match="tokens"):
            denoiser(x, 0.5)
        with pytest.raises(InputError, match="null"):
            denoiser(x, 0.5, tokens=torch.zeros(1, 77, 16), drop=torch.ones(1, dtype=torch.bool))
        with pytest.raises(InputError, match="as many"):
            denoiser.prompt(["a", "b"], ["c"])
        with pytest.raises(IncompatibleError, match="text encoders"):
            from_diffusers(tiny.ddpm().unet, scheduler={"beta_schedule": "linear"}).prompt("a cat")
