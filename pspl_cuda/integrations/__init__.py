"""Plug-ins for training frameworks, one module each (docs/frameworks.md).

Importing ``basicsr``, ``neosr`` or ``trainner_redux`` registers PSPLLoss with the framework's losses and makes its models advance
it when they resume; ``mmagic`` registers it with MMEngine's models. ``edsr_pytorch`` and ``kair`` build it for one branch in the
framework's if-chain. ``lightning``, ``transformers`` and ``accelerate`` take its iteration from the steps of the optimizer.
"""
