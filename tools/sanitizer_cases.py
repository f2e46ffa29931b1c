"""Small cases that run every CUDA kernel, for compute-sanitizer: windows, paddings, distances, dtypes, layouts, borders."""

import torch

import pspl_cuda


def run(shape, dtype=torch.float32, layout=torch.contiguous_format, hr_dtype=None, **keywords):
    sr, hr = (
        torch.rand(shape, device="cuda").to(each).contiguous(memory_format=layout)
        for each in (dtype, hr_dtype or dtype)
    )
    sr.requires_grad_()
    loss = pspl_cuda.pspl_loss(sr, hr, 1.0, backend="cuda", **keywords)
    loss = loss[0] if isinstance(loss, tuple) else loss
    loss.sum().backward()
    assert torch.isfinite(sr.grad).all()


def main() -> None:
    torch.manual_seed(0)
    run((2, 3, 70, 130))
    run((2, 3, 33, 65), return_stats=True)
    run((2, 3, 20, 66), layout=torch.channels_last)
    run((1, 1, 1, 1))
    run((1, 2, 3, 7), padding="reflect")
    run((1, 2, 40, 41), padding="replicate", distance="charbonnier", reduction="none")
    for window in (1, 3, 5, 7, 9, 13):
        run((1, 2, 18, 35), window_size=window, distance="l2")
    run((2, 3, 30, 34), dtype=torch.float16)
    run((2, 3, 30, 34), dtype=torch.bfloat16, distance="l2")
    run((2, 3, 30, 33), dtype=torch.bfloat16, hr_dtype=torch.float32)
    run((1, 3, 30, 33), dtype=torch.float64)
    step = torch.tensor(1.0, device="cuda")
    sr, hr = torch.rand(2, 1, 3, 40, 40, device="cuda")
    pspl_cuda.attention_map(sr, hr, step)
    torch.cuda.synchronize()
    print("all cases passed")


if __name__ == "__main__":
    main()
