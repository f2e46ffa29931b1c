"""What only a GPU can test: streams, graphs, synchronisation, several devices, large tensors."""

import pytest
import torch

import pspl_cuda

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
    pytest.mark.skipif(
        not pspl_cuda.backend_info()["cuda"]["available"],
        reason=f"the CUDA kernel is not built: {pspl_cuda.backend_info()['cuda']['reason']}",
    ),
]


def noisy_pair(shape=(4, 3, 100, 120), dtype=torch.float32, device="cuda"):
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(shape, generator=generator)
    sr = hr + 0.1 * torch.randn(shape, generator=generator)
    return sr.to(device, dtype), hr.to(device, dtype)


def loss_and_gradient(sr, hr, step, **keywords):
    sr = sr.detach().requires_grad_()
    loss = pspl_cuda.pspl_loss(sr, hr, step, **keywords)
    (gradient,) = torch.autograd.grad(loss, sr)
    return loss.detach(), gradient


def test_no_synchronisation():
    """Neither forward nor backward may wait for the device, whatever the step is."""
    sr, hr = noisy_pair()
    step = torch.tensor(1.0, device="cuda")
    loss_and_gradient(sr, hr, step, return_stats=False)  # builds caches
    torch.cuda.set_sync_debug_mode("error")
    try:
        for distance in ("l1", "l2", "charbonnier"):
            loss_and_gradient(sr, hr, step, distance=distance)
            loss_and_gradient(sr, hr, 1.0, distance=distance)
        module = pspl_cuda.PSPLLoss(return_stats=True)
        module(sr.requires_grad_(), hr)[0].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_graph_follows_the_schedule():
    """A captured graph reads the step on the device: one capture serves all steps."""
    sr, hr = noisy_pair()
    step = torch.tensor(0.5, device="cuda", dtype=torch.float64)
    sr.requires_grad_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        pspl_cuda.pspl_loss(sr, hr, step).backward()
    torch.cuda.current_stream().wait_stream(stream)
    sr.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = pspl_cuda.pspl_loss(sr, hr, step)
        loss.backward()
    for value in (0.5, 1.0, 3.0, 100.0):
        step.fill_(value)
        graph.replay()
        expected_loss, expected_gradient = loss_and_gradient(sr, hr, value)
        assert torch.equal(loss.detach(), expected_loss)
        assert torch.equal(sr.grad, expected_gradient)


def test_capturable_module_follows_the_schedule_in_a_graph():
    """The count advances inside the graph, by itself."""
    sr, hr = noisy_pair()
    sr.requires_grad_()
    loss = pspl_cuda.PSPLLoss(capturable=True, iterations_per_step=2, return_stats=True)
    plain = pspl_cuda.PSPLLoss(iterations_per_step=2)
    with pytest.raises(RuntimeError, match="warm-up"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        loss(sr, hr)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        loss(sr, hr)[0].backward()
    torch.cuda.current_stream().wait_stream(stream)
    sr.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value, _ = loss(sr, hr)
        value.backward()
    loss.iteration = 0
    for iteration in range(1, 6):
        graph.replay()
        assert loss.iteration == iteration
        assert torch.equal(value.detach(), plain(sr, hr).detach())


def test_capturable_module_under_reduce_overhead():
    """Inductor captures the compiled module in a CUDA graph, and the schedule advances."""
    sr, hr = noisy_pair()
    loss = pspl_cuda.PSPLLoss(capturable=True, iterations_per_step=2).to("cuda")
    plain = pspl_cuda.PSPLLoss(iterations_per_step=2)
    compiled = torch.compile(loss, mode="reduce-overhead", fullgraph=True)
    torch._dynamo.utils.counters.clear()
    for _ in range(6):
        leaf = sr.clone().requires_grad_()
        value = compiled(leaf, hr)
        value.backward()
        torch.testing.assert_close(value.detach(), plain(sr, hr), rtol=1e-6, atol=0)
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0


class _NetworkAndLoss(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.criterion = pspl_cuda.PSPLLoss(
            iterations_per_step=2
        )  # first, so that its state is the first in the model's
        self.network = torch.nn.Conv2d(3, 3, 1)

    def forward(self, sr, hr):
        return self.criterion(self.network(sr), hr).reshape(1)


def test_data_parallel_counts_a_batch_once():
    """Two replicas on one device."""
    torch.manual_seed(0)
    images = torch.rand(2, 2, 3, 16, 16, device="cuda")
    model = _NetworkAndLoss().to("cuda")
    parallel = torch.nn.DataParallel(model, device_ids=[0, 0])
    for iteration in range(1, 4):
        losses = parallel(*images)
        losses.sum().backward()
        assert losses.shape == (2,)
        assert model.criterion.iteration == iteration
        expected = pspl_cuda.pspl_loss(model.network(images[0, :1]), images[1, :1], iteration / 2)
        torch.testing.assert_close(losses[0], expected, rtol=1e-5, atol=0)


def test_state_of_a_model_is_on_its_device():
    """Lightning's load_from_checkpoint moves the model to the device of the first tensor in its state."""
    model = _NetworkAndLoss().to("cuda")
    assert {value.device.type for value in model.state_dict().values()} == {"cuda"}
    twin = _NetworkAndLoss()
    model.criterion.iteration = 7
    twin.load_state_dict(model.state_dict())
    assert twin.criterion.iteration == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_backward_leaves_the_saved_gradient_where_grad_output_is_one(dtype):
    """Eager and captured: the gradient for 1 is the saved one, any other factor is applied on the device."""
    sr, hr = noisy_pair(dtype=dtype)
    hr = hr.float()
    _, gradient = loss_and_gradient(sr, hr, 1.0)
    factor = torch.ones((), device="cuda")
    leaf = sr.clone().requires_grad_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.autograd.grad(pspl_cuda.pspl_loss(leaf, hr, 1.0), leaf, factor)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (captured,) = torch.autograd.grad(pspl_cuda.pspl_loss(leaf, hr, 1.0), leaf, factor)
    for value in (1.0, 4.0, 0.0):
        factor.fill_(value)
        graph.replay()
        assert torch.equal(captured, gradient * value)


def test_graphs_and_eager_calls_share_no_counter():
    """Two graphs captured on one stream, replayed on two, beside eager calls: each must end its own sum."""
    sr, hr = noisy_pair((8, 3, 256, 256))
    expected = pspl_cuda.pspl_loss(sr, hr, 1.0)
    graphs = []
    for _ in range(2):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = pspl_cuda.pspl_loss(sr, hr, 1.0)
        graphs.append((graph, loss, torch.cuda.Stream()))
    for _ in range(50):
        for graph, loss, stream in graphs:
            with torch.cuda.stream(stream):
                loss.zero_()
                graph.replay()
        eager = pspl_cuda.pspl_loss(sr, hr, 1.0)
        torch.cuda.synchronize()
        assert torch.equal(eager, expected)
        for _, loss, _ in graphs:
            assert torch.equal(loss, expected)


def test_side_streams():
    """Work queued on a stream of one's own comes before the kernel, and streams do not disturb one another."""
    sr, hr = noisy_pair((8, 3, 256, 256))
    expected = [loss_and_gradient(sr * factor, hr, 1.0) for factor in (1.0, 0.5)]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    for _ in range(20):
        found = []
        for stream, factor in zip(streams, (1.0, 0.5), strict=True):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                torch.cuda._sleep(200_000)
                found.append(loss_and_gradient(sr * factor, hr, 1.0))
        torch.cuda.synchronize()
        for (loss, gradient), (expected_loss, expected_gradient) in zip(found, expected, strict=True):
            assert torch.equal(loss, expected_loss)
            assert torch.equal(gradient, expected_gradient)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs here")
def test_second_device_while_the_first_is_current():
    sr, hr = noisy_pair()
    expected, _ = loss_and_gradient(sr, hr, 1.0)
    loss, gradient = loss_and_gradient(sr.to("cuda:1"), hr.to("cuda:1"), 1.0)
    assert torch.cuda.current_device() == 0
    assert gradient.device == torch.device("cuda:1")
    assert torch.equal(loss.cpu(), expected.cpu())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs here")
def test_images_on_two_devices_are_refused():
    sr, hr = noisy_pair()
    with pytest.raises(ValueError, match="cuda:1"):
        pspl_cuda.pspl_loss(sr, hr.to("cuda:1"), 1.0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs here")
def test_devices_work_at_the_same_time():
    """Each device has its own counter and its own plan."""
    pairs = [noisy_pair((8, 3, 256, 256), device=f"cuda:{index}") for index in range(2)]
    expected = [loss_and_gradient(*pair, 1.0) for pair in pairs]
    for _ in range(20):
        found = [loss_and_gradient(*pair, 1.0) for pair in pairs]
        for (loss, gradient), (expected_loss, expected_gradient) in zip(found, expected, strict=True):
            assert torch.equal(loss, expected_loss)
            assert torch.equal(gradient, expected_gradient)


def test_the_kernel_is_compiled_for_this_generation():
    """It is not translated from PTX at the first call, without the code for this architecture."""
    major, minor = torch.cuda.get_device_capability()
    built = [
        tuple(map(int, name.removesuffix("+PTX").split(".")))
        for name in pspl_cuda.backend_info()["cuda"]["architectures"]
    ]
    assert any(other[0] == major and other[1] <= minor for other in built)


def test_step_on_the_host_for_images_on_the_device():
    sr, hr = noisy_pair()
    expected, _ = loss_and_gradient(sr, hr, 1.5)
    found, _ = loss_and_gradient(sr, hr, torch.tensor(1.5))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_no_memory_beside_the_gradient(dtype):
    sr, hr = noisy_pair((8, 3, 512, 512), dtype)
    sr.requires_grad_()
    pspl_cuda.pspl_loss(sr, hr, 1.0).backward()
    sr.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    pspl_cuda.pspl_loss(sr, hr, 1.0).backward()
    extra = torch.cuda.max_memory_allocated() - before - sr.numel() * sr.element_size()
    assert extra <= 2**21


def test_no_leak():
    sr, hr = noisy_pair((2, 3, 64, 64))
    sr.requires_grad_()
    for _ in range(10):
        pspl_cuda.pspl_loss(sr, hr, 1.0).backward()
    before = torch.cuda.memory_allocated()
    for _ in range(1000):
        pspl_cuda.pspl_loss(sr, hr, 1.0).backward()
    assert torch.cuda.memory_allocated() == before


@pytest.mark.large
def test_more_than_2_31_elements():
    """64-bit offsets: the last plane of a tensor beyond 2^31 elements gives what it gives alone (bfloat16, about 30 GB)."""
    shape = (11, 3, 8192, 8192)
    if torch.cuda.mem_get_info()[0] < 34 * 2**30:
        pytest.skip("needs 34 GiB of free GPU memory")
    sr = torch.zeros(shape, dtype=torch.bfloat16, device="cuda")
    hr = torch.zeros(shape, dtype=torch.bfloat16, device="cuda")
    assert sr.numel() > 2**31
    part_sr, part_hr = noisy_pair((1, 3, 8192, 8192), torch.bfloat16)
    sr[-1:] = part_sr
    hr[-1:] = part_hr
    whole, gradient = loss_and_gradient(sr, hr, 1.0, reduction="sum")
    part, part_gradient = loss_and_gradient(part_sr, part_hr, 1.0, reduction="sum")
    torch.testing.assert_close(whole, part, rtol=1e-6, atol=0)
    assert torch.equal(gradient[-1:], part_gradient)
    assert not gradient[:-1].any()
