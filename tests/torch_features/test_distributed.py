"""The loss in several processes: sent to one, under DistributedDataParallel and FSDP2."""

from __future__ import annotations

from multiprocessing.pool import ThreadPool

import pytest
import torch
from torch.distributed import checkpoint

from helpers import ddp_worker, training_worker
from pspl_cuda import PSPLLoss


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_worker_process(method, tmp_path):
    """Another process of either kind computes the same bits."""
    context = torch.multiprocessing.get_context(method)
    process = context.Process(target=training_worker.evaluate_to, args=(str(tmp_path / "result.pt"),))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    loss, gradient = torch.load(tmp_path / "result.pt")
    expected_loss, expected_gradient = training_worker.evaluate()
    assert loss == expected_loss
    assert torch.equal(gradient, expected_gradient)


def test_module_is_sent_to_a_process():
    """Pickled with its count, as a DataLoader or a launcher does."""
    loss = PSPLLoss(start_iteration=41, distance="l2")
    context = torch.multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        twin = pool.apply(_advanced, (loss,))
    assert (loss.iteration, twin.iteration, twin.distance) == (41, 42, "l2")


def _advanced(loss):
    loss(torch.rand(1, 1, 5, 6), torch.rand(1, 1, 5, 6))
    return loss


@pytest.mark.deep
def test_uneven_inputs(tmp_path):
    """A process that runs out of batches joins the others' reductions; each counts its own calls."""
    torch.multiprocessing.spawn(training_worker.run_uneven, (str(tmp_path),), nprocs=2, daemon=True)
    results = [torch.load(tmp_path / f"uneven{rank}.pt") for rank in range(2)]
    assert [iteration for iteration, _ in results] == [3, 2]
    for name, weight in results[0][1].items():
        assert torch.equal(weight, results[1][1][name])
        assert weight.isfinite().all()


@pytest.mark.deep
def test_fully_sharded(tmp_path):
    """FSDP2 trains what one process does on the joint batch."""
    torch.multiprocessing.spawn(training_worker.run_sharded, (str(tmp_path),), nprocs=2, daemon=True)
    expected = training_worker.expected_weights()
    for rank in range(2):
        iteration, weights = torch.load(tmp_path / f"sharded{rank}.pt")
        assert iteration == 3
        for name, weight in weights.items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)


def test_distributed_data_parallel(tmp_path):
    """Two processes, the loss inside or outside of the wrapped module: all see one schedule, also where one of them
    validates, nothing of the loss is broadcast, and they train what one process does on the joint batch."""
    torch.multiprocessing.spawn(ddp_worker.run, (str(tmp_path),), nprocs=2, daemon=True)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    expected = ddp_worker.train(ddp_worker.NetworkAndLoss(), lambda batch: batch)
    start = ddp_worker.NetworkAndLoss().network.weight
    assert not torch.allclose(expected[-1][1]["weight"], start, atol=1e-2)
    for rank in ranks:
        for where in ("inside", "outside", "accumulated"):
            assert [iteration for iteration, _ in rank[where]] == [1, 2, 3]
            for (_, got), (_, wanted) in zip(rank[where], expected, strict=True):
                for name in ("weight", "bias"):
                    # Weights below 1 after float32 sums of 624 terms in another order.
                    torch.testing.assert_close(got[name], wanted[name], rtol=1e-5, atol=1e-6)
        assert rank["resumed"] == 3
        assert rank["buffers"] == 0


def _threads(replicas, images):
    """What nn.DataParallel does with replicas, without GPUs."""
    with ThreadPool(len(replicas)) as pool:
        return pool.starmap(lambda replica, sr, hr: replica(sr, hr), [(r, *images) for r in replicas])


@pytest.mark.parametrize("calls_per_iteration", [1, 2])
def test_data_parallel(calls_per_iteration):
    """Each batch has replicas of its own. They are at one step, and the batch counts once."""
    images = torch.rand(2, 1, 3, 8, 8)
    loss = PSPLLoss(iterations_per_step=2, calls_per_iteration=calls_per_iteration)
    expected = PSPLLoss(iterations_per_step=2, calls_per_iteration=calls_per_iteration)
    for batch in range(1, 6):
        values = _threads([loss._replicate_for_data_parallel() for _ in range(4)], images)
        assert values == 4 * [expected(*images)]
        assert loss.iteration == -(-batch // calls_per_iteration)


def test_data_parallel_of_a_capturable_module():
    with pytest.raises(RuntimeError, match="DataParallel"):
        PSPLLoss(capturable=True)._replicate_for_data_parallel()


SAVED_AND_LOADED = [
    ({}, {}),
    ({"total_iterations": 600}, {"total_iterations": 600}),
    ({"total_iterations": 600}, {}),
    ({}, {"total_iterations": 600}),
]


def _model(**keywords):
    return torch.nn.ModuleDict({"network": torch.nn.Conv2d(3, 3, 1), "criterion": PSPLLoss(**keywords)})


@pytest.mark.filterwarnings("ignore:.*torch.distributed:UserWarning", "ignore:The saved PSPLLoss has:UserWarning")
@pytest.mark.parametrize(("saved", "loaded"), SAVED_AND_LOADED, ids=str)
def test_distributed_checkpoint(saved, loaded, tmp_path):
    """It loads into the tensors of the new model, so their sizes must be those of the old one."""
    model, other = _model(**saved, start_iteration=41), _model(**loaded)
    checkpoint.save(model.state_dict(), checkpoint_id=tmp_path)
    state = other.state_dict()
    checkpoint.load(state, checkpoint_id=tmp_path)
    other.load_state_dict(state)
    assert other["criterion"].iteration == 41


@pytest.mark.filterwarnings("ignore:.*torch.distributed:UserWarning")
def test_distributed_checkpoint_without_the_loss(tmp_path):
    """From before the loss was used: allow_partial_load leaves the count alone (docs/frameworks.md)."""
    model, other = _model(), _model(start_iteration=7)
    checkpoint.save({"network.weight": model["network"].weight}, checkpoint_id=tmp_path)
    state = other.state_dict()
    checkpoint.load(state, checkpoint_id=tmp_path, planner=checkpoint.DefaultLoadPlanner(allow_partial_load=True))
    other.load_state_dict(state)
    assert torch.equal(other["network"].weight, model["network"].weight)
    assert other["criterion"].iteration == 7
