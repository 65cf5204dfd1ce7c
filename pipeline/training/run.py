"""A run from its settings to its results; pipeline/train_step.py is a step of it."""

from tqdm import tqdm

from pipeline.config import Config
from pipeline.data.mixture import mixture_of
from pipeline.data.stream import CandidateStream
from pipeline.data.targets import TargetSet
from pipeline.data.token_file import TokenFile
from pipeline.hook import SelectionHook
from pipeline.ranks.stopping import REQUEUE, StopRequests
from pipeline.ranks.together import together
from pipeline.train_step import train_step
from pipeline.training import checkpoint, run_folder, self_check
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.evaluation import exact_match, held_out_loss, questions
from pipeline.training.guards import check_replicas
from pipeline.training.journal import Journal
from pipeline.training.model import load_reference_model, load_tokenizer
from pipeline.training.prepare import load, prepare
from pipeline.training.proposing import proposer_of
from pipeline.training.tokenised import read


def train(config: Config) -> None:
    """Train with ``config``, from the beginning or from a checkpoint. Every rank calls it."""
    stop = StopRequests()
    prepared = prepare(config)
    rank, world_size, device, say = prepared.rank, prepared.world_size, prepared.device, prepared.say
    tokenizer = load_tokenizer(config.model)
    pool, targets, tests = (read(name, tokenizer, config, say) for name in ("pool", "target", "test"))
    assert isinstance(pool, TokenFile)  # data.pool is never empty
    asked = questions(tests, config.training.evaluation_answers, config.data.max_tokens)
    weights = config.data.pool_weights
    pool_setting = "data.pool"
    if config.selection.proposal == "target":
        pool, weights, pool_setting = targets, None, "data.target"
        assert isinstance(pool, TokenFile)
    mixture = mixture_of(config.data.pool, pool.sizes, weights) if weights else None
    stream = CandidateStream(
        pool, config.selection.candidates_per_step, config.run.seed, mixture, pool_setting
    )
    rotate = config.data.rotate_targets
    target_set = (
        TargetSet(targets, config.selection.target_per_step, config.run.seed, rotate) if targets else None
    )

    identity = checkpoint.identity(config, prepared.merged, pool, targets, tests)
    tests = list(tests)  # read once: every evaluation goes through all of them
    if together(lambda: run_folder.is_finished(config, identity)):
        say(f"the run in {config.run.folder} is finished; there is nothing to resume")
        return
    found = checkpoint.find(config, identity, say)
    folder = together(lambda: run_folder.prepare(config, prepared.merged, found, say))

    reference = load_reference_model(
        config.selection.reference_model, config.model, tokenizer, prepared.dtype, device
    )
    loaded = load(config, prepared, found=found)
    engine, attention, is_packed = loaded.engine, loaded.attention, loaded.is_packed
    pad_token_id = tokenizer.pad_token_id
    hook = SelectionHook.attach(
        engine, target_set, config.selection, pad_token_id, config.run.seed, reference, is_packed
    )
    say(
        f"{type(engine.optimizer).__name__}, {world_size} ranks on {device.type}, {prepared.dtype}; "
        f"attention: {attention.kernel}"
    )
    say(f"the samples of a micro-batch are {'packed into one row' if is_packed else 'padded to the longest'}")
    if attention.slower:
        say(f"a slower attention kernel runs: {attention.slower}")
    say("self-check: what selection relies on, measured on this model, data and cluster")
    say.checks(self_check.run(hook, stream.shard(0, rank, world_size)))

    proposer, setup = proposer_of(config, hook, stream, targets, say)
    checkpoints, first, watched = Checkpoints(folder, hook, proposer, config, identity, say), 0, None
    if found:
        first, watched = found.manifest.step, checkpoints.load(found)
        together(lambda: run_folder.continue_records(folder, found, world_size, say))
        if hook.needs_moments:
            say.checks([self_check.check_state(hook)])
    journal = Journal(folder, engine, config, pool, watched) if rank == 0 else None
    if rank == 0:
        facts = {
            "attention": attention.kernel,
            "slower_attention": attention.slower,
            "is_packed": is_packed,
            "world_size": world_size,
            "dtype": str(prepared.dtype),
            "device": device.type,
        }
        run_folder.write_environment(folder, facts)
        names = config.data.target if config.selection.proposal == "target" else config.data.pool
        run_folder.write_pool(folder, names, pool, targets, mixture)
        run_folder.write_setup(folder, setup)

    def evaluate(step: int) -> None:
        if tests:
            loss = held_out_loss(
                engine, tests, pad_token_id, config.training.evaluation_micro_batch_size, is_packed
            )
            say(f"step {step}: held-out loss {loss:.4f}")
            answers = None
            if asked and step == steps:
                accuracy = exact_match(engine, asked, tokenizer, config.training.evaluation_micro_batch_size)
                answers = {"accuracy": accuracy, "num_answers": len(asked)}
                say(f"step {step}: {accuracy:.1%} of {len(asked)} answers match exactly")
            if journal:
                journal.evaluation(step, loss, tests, answers)

    steps = config.training.steps
    progress = tqdm(
        range(first, steps),
        config.selection.method,
        steps,
        initial=first,
        unit="step",
        disable=rank != 0,
        mininterval=1.0,
    )
    for step in progress:
        if step == 0 or (config.training.evaluate_every and step % config.training.evaluate_every == 0):
            evaluate(step)

        trained = train_step(hook=hook, proposer=proposer, step=step)
        look, result = trained.look, trained.result
        if hook.needs_moments and result.was_applied and engine.global_steps - engine.skipped_steps == 1:
            say.checks([self_check.check_state(hook)])
        if journal:
            for warning in journal.step(trained):
                say(warning)
        cosine = look.selection.cosine
        progress.set_postfix(loss=f"{result.loss:.3f}", cosine="-" if cosine is None else f"{cosine:.2f}")

        verify_every = config.training.verify_every
        if (
            verify_every
            and (step + 1) % verify_every == 0
            and not engine.zero_optimization_partition_weights()
        ):
            check_replicas(engine.module, hook.collectives, step + 1)
        requested = stop.agreed(hook.collectives)
        if requested or checkpoints.is_due(step + 1):
            saved = checkpoints.save(step + 1, journal)
        if requested:
            goes_on = "goes on" if saved else "goes on from the checkpoint before, if there is one"
            say(f"{requested}: stopped after {step + 1} steps; --resume auto {goes_on}")
            raise SystemExit(REQUEUE)
    evaluate(steps)

    if config.run.save_model:
        run_folder.save_model(engine, tokenizer, folder / "final", rank == 0)
    together(lambda: run_folder.write_finished(folder, steps, identity))
    say(f"results in {folder}")
