"""Linear layers whose frozen matrix is held in the bytes of an `ExpertFormat`.

Letters: S rows, O and I the output and input width.
"""

from torch import Tensor, nn

from dwellmoe.experts.formats.base import QuantisingFormat
from dwellmoe.families.not_finite import is_finite


class LowBitLinear(nn.Linear):
    """Computes what the given layer computes with its matrix in a format; for inference.

    To PEFT, which adds LoRA beside it, it is a linear layer. Its matrix is no parameter: it is not cast,
    saved or trained.
    """

    def __init__(self, layer: nn.Linear, format: QuantisingFormat) -> None:
        nn.Module.__init__(self)  # that of nn.Linear would allocate a matrix
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.format, self.dtype = format, layer.weight.dtype
        self.bias = layer.bias
        held = format.quantise(layer.weight.detach().cpu())
        self.stored = {name: tensor.to(layer.weight.device) for name, tensor in held.items()}

    @property
    def shape_OI(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    @property
    def nbytes(self) -> int:
        """Bytes that hold the matrix."""
        return sum(tensor.nbytes for tensor in self.stored.values())

    @property
    def weight(self) -> Tensor:  # type: ignore[override] - it is a parameter there
        """The matrix, dequantised anew each time."""
        return self.format.dequantise(self.stored, self.shape_OI, self.dtype)

    def forward(self, input: Tensor) -> Tensor:
        x_SI = input.reshape(-1, self.in_features)
        out_SO = self.format.product(x_SI, self.stored, self.shape_OI)
        if self.bias is not None:
            out_SO = out_SO + self.bias
        return out_SO.reshape(*input.shape[:-1], self.out_features)


def low_bit_bytes(model: nn.Module) -> int:
    """Bytes of all matrices of a model's low-bit layers."""
    return sum(module.nbytes for module in model.modules() if isinstance(module, LowBitLinear))


def hold_in_low_bits(layer: nn.Linear, format: QuantisingFormat) -> LowBitLinear:
    """The same layer in a format. Raises ValueError for a matrix that is not finite."""
    if not is_finite(layer.weight):
        raise ValueError("its weights are not finite (NaN or infinite)")
    return LowBitLinear(layer, format)
