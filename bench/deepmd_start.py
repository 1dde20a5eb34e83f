"""First weights of DeePMD-kit's own making.  For the python of its own environment.

    deepmd_start.py MODEL.json START.pt ENERGY_SHIFT...

MODEL.json is the model section of its input; the shifts are eV of each type.
"""

import json
import sys
from pathlib import Path

import torch
from deepmd.pt.model.model import get_model
from deepmd.pt.train.wrapper import ModelWrapper
from deepmd.utils.argcheck import model_args


def main(source: str, target: str, *shifts: str) -> None:
    options = model_args().normalize_value(json.loads(Path(source).read_text()))
    model = get_model(options)
    bias = model.atomic_model.out_bias
    with torch.no_grad():
        bias.copy_(torch.tensor([float(shift) for shift in shifts]).double().reshape(bias.shape))
    state = ModelWrapper(model, model_params=options).state_dict()
    torch.save({"model": state, "optimizer": {}}, target)  # `dp train --init-model` wants both


main(*sys.argv[1:])
