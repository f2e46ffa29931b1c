"""Plug-ins for training frameworks, one module each. Importing one registers PSPLLoss with its framework (docs/frameworks.md).

``basicsr``, ``neosr`` and ``trainner_redux`` register ``PSPLLoss`` with the framework's losses, ``mmagic`` with MMEngine's
models; ``edsr_pytorch`` and ``kair`` build it for one line in the framework's if-chain; ``lightning`` is a callback.
"""
