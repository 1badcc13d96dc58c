"""The small networks of the HARD and Orbit papers, and the CIFAR-10 residual nets.

Builders take num_classes, in_channels and image_size (px) first, then what a config may set.
Letters: B images, C channels, H rows, W columns, K classes, N tokens, D channels of a head.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hard_fast.models.binary import BNEXTS
from hard_fast.models.lenet import LENETS
from hard_fast.models.options import Count, Probability, Widths
from hard_fast.models.vae import TinyVae


def cnn(
    num_classes: int,
    in_channels: int,
    image_size: int,
    widths: Widths = (128, 64, 64),
    dropout: Probability = 0.1,
    batch_norm: bool = False,
    pools: tuple[Count, ...] = (1, 2, 3),
    padded: bool = False,
) -> nn.Sequential:
    """A plain CNN: 3x3 convolutions, each max-pooled, then the mean over what is left.

    Args:    widths: output channels of each convolution. dropout: probability after each pooling.
             batch_norm: a BatchNorm2d between each convolution and its ReLU.
             pools: side of the max-pooling after each convolution.
             padded: pad convolutions and poolings, so that what lies at the border counts in full.
    Returns: [B,C,H,W] -> [B,K]; 112,650 parameters by default for one channel and ten classes.
    Raises:  ValueError if the picture is too small for the convolutions and poolings.
    Source:  Nix et al. 2022 (Orbit), the MNIST teacher; batch_norm, pools, padded are ours.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels, left_px = in_channels, image_size
    if len(pools) != len(widths):
        raise ValueError(f"pools = {list(pools)}: needs one for each of {len(widths)} widths")
    for i, (width, pool) in enumerate(zip(widths, pools, strict=True), start=1):
        layers[f"conv{i}"] = nn.Conv2d(channels, width, 3, padding=int(padded))
        if batch_norm:
            layers[f"norm{i}"] = nn.BatchNorm2d(width)
        layers[f"relu{i}"] = nn.ReLU()
        layers[f"pool{i}"] = nn.MaxPool2d(pool, ceil_mode=padded)
        layers[f"dropout{i}"] = nn.Dropout(dropout)
        channels, left_px = width, left_px if padded else (left_px - 2) // pool
        if left_px < 1:
            raise ValueError(f"image_size = {image_size}: too small for {len(widths)} convolutions")
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(channels, num_classes)
    return nn.Sequential(layers)


def mlp(
    num_classes: int,
    in_channels: int,
    image_size: int,
    hidden: tuple[Count, ...] = (512, 128, 32),
    dropout: Probability = 0.1,
    head_bias: bool = False,
) -> nn.Sequential:
    """A multi-layer perceptron on the flattened picture, ReLU and dropout after each hidden layer.

    Args:    hidden: width of each hidden layer. dropout: probability. head_bias: of the last layer.
    Returns: [B,C,H,W] -> [B,K]; 472,032 parameters by default for 28x28x1 and ten classes.
    Source:  Nix et al. 2022 (Orbit), the MNIST student. With 1x1x1 pictures it is the regression
             net of HARD's figure 2.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    features = in_channels * image_size**2
    for i, width in enumerate(hidden, start=1):
        layers[f"linear{i}"] = nn.Linear(features, width)
        layers[f"relu{i}"] = nn.ReLU()
        layers[f"dropout{i}"] = nn.Dropout(dropout)
        features = width
    layers["head"] = nn.Linear(features, num_classes, bias=head_bias)
    return nn.Sequential(layers)


class _PadShortcut(nn.Module):
    """Every second pixel, with zero planes on both sides: a shortcut without parameters."""

    def __init__(self, num_planes: int) -> None:
        super().__init__()
        self.num_planes = num_planes

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.pad(x_BCHW[:, :, ::2, ::2], (0, 0, 0, 0, self.num_planes, self.num_planes))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a shortcut."""

    def __init__(self, in_width: int, width: int, stride: int, projects: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if (stride, in_width) != (1, width):
            self.shortcut = _PadShortcut((width - in_width) // 2)
            if projects:
                conv = nn.Conv2d(in_width, width, 1, stride, bias=False)
                self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(width))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The block's output, [B,C,H/stride,W/stride]."""
        y = F.relu(self.bn1(self.conv1(x_BCHW)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x_BCHW))


def resnet(
    num_classes: int,
    in_channels: int,
    image_size: int,
    widths: Widths = (64, 128, 256, 512),
    num_blocks: Count | Widths = 2,
    projects: bool = True,
) -> nn.Sequential:
    """A residual net for small pictures: 3x3 stem of stride 1, no max-pooling, global average.

    Args:    widths: channels of each stage; every stage but the first halves the picture.
             num_blocks: of each stage or all. projects: a 1x1 convolution where a shortcut changes
             shape (option B), else every second pixel and planes of zeros (option A).
    Returns: [B,C,H,W] -> [B,K]. Layers are named as in the public CIFAR-10 checkpoints.
    Source:  He et al. 2016; defaults are the ResNet-18 of Nix et al. 2022 (Orbit) and HARD.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(widths[0]),
        relu=nn.ReLU(),
    )
    in_width = widths[0]
    counts = num_blocks if isinstance(num_blocks, tuple) else (num_blocks,) * len(widths)
    for i, (width, num) in enumerate(zip(widths, counts, strict=True), start=1):
        blocks = [BasicBlock(in_width, width, 1 if i == 1 else 2, projects)]
        blocks += [BasicBlock(width, width, 1, projects) for _ in range(num - 1)]
        layers[f"layer{i}"] = nn.Sequential(*blocks)
        in_width = width
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["linear"] = nn.Linear(in_width, num_classes)
    net = nn.Sequential(layers)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


class Attention(nn.Module):
    """Self-attention with its LayerNorm in front; queries, keys and values have no bias."""

    def __init__(self, dim: int, heads: int, dim_head: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dim_head, self.dropout = heads, dim_head, dropout
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """What the block adds to its tokens, [B,N,C]."""
        qkv = self.to_qkv(self.norm(x_BNC)).unflatten(-1, (3, self.heads, self.dim_head))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        y_BHND = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.drop(self.to_out(y_BHND.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """One transformer layer: attention, then an MLP, each added to its input."""

    def __init__(self, dim: int, heads: int, dim_head: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, dim_head, dropout)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, mlp_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(mlp_dim, dim),
            nn.Dropout(dropout),
        )

    def forward(self, x_BNC: Tensor) -> Tensor:
        """The tokens after this layer, [B,N,C]."""
        x_BNC = x_BNC + self.attention(x_BNC)
        return x_BNC + self.mlp(x_BNC)


class VisionTransformer(nn.Module):
    """A ViT in the manner of vit-pytorch: class token, positions drawn from N(0,1), pre-norm.

    Args:    patch: side of a patch, px. dim: width of a token. dim_head: width of one attention
             head. mlp_dim: hidden width of a layer's MLP. dropout, emb_dropout: probability in
             the layers and on the embedded patches. head_hidden: hidden width of an MLP head
             without LayerNorm; None for a LayerNorm and one linear layer.
    Raises:  ValueError if the picture is not a whole number of patches.
    Source:  Dosovitskiy et al., arXiv:2010.11929. Defaults are the CIFAR-10 student of HARD,
             appendix A ("hidden 512 in all places"), with the patch size and dim_head of the same
             authors' public recipes. The patch projection is a convolution: the same map.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        image_size: int,
        patch: Count = 4,
        dim: Count = 512,
        depth: Count = 6,
        heads: Count = 8,
        dim_head: Count = 512,
        mlp_dim: Count = 512,
        dropout: Probability = 0.1,
        emb_dropout: Probability = 0.1,
        head_hidden: Count | None = None,
    ) -> None:
        super().__init__()
        if image_size % patch:
            raise ValueError(f"patch = {patch}: must divide the picture's size, {image_size} px")
        self.to_patches = nn.Conv2d(in_channels, dim, patch, stride=patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, (image_size // patch) ** 2 + 1, dim))
        self.drop = nn.Dropout(emb_dropout)
        self.blocks = nn.Sequential(
            *(Block(dim, heads, dim_head, mlp_dim, dropout) for _ in range(depth))
        )
        layers: list[nn.Module] = [nn.LayerNorm(dim), nn.Linear(dim, num_classes)]
        if head_hidden is not None:
            layers = [nn.Linear(dim, head_hidden), nn.GELU(), nn.Linear(head_hidden, num_classes)]
        self.head = nn.Sequential(*layers)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Logits [B,K]."""
        x_BNC = self.to_patches(image_BCHW).flatten(2).transpose(1, 2)
        token = self.class_token.expand(len(x_BNC), -1, -1)
        x_BNC = torch.cat([token, x_BNC], dim=1) + self.positions
        return self.head(self.blocks(self.drop(x_BNC))[:, 0])


class Cosine(nn.Module):
    """cos(x) of a picture of one pixel: [B,1,1,1] -> [B,1]. It has no parameters.

    Raises:  ValueError for any other size.
    Source:  HARD figure 2, the teacher of the regression.
    """

    def __init__(self, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__()
        if (num_classes, in_channels, image_size) != (1, 1, 1):
            given = f"{num_classes}, {in_channels} and {image_size}"
            raise ValueError(f"cosine: needs one class, one channel and one pixel, given {given}")

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """cos(x), [B,1]."""
        return torch.cos(image_BCHW.flatten(1))


_cifar_resnet = partial(resnet, widths=(16, 32, 64), projects=False)

# What `name` in a config selects. Called with num_classes, in_channels, image_size and the options.
SMALL_NETS: dict[str, Callable[..., nn.Module]] = {
    "cnn": cnn,
    "mlp": mlp,
    "resnet18_3x3": resnet,
    # He et al. 2016, section 4.2, option A: 269,722 and 853,018 parameters.
    "cifar_resnet20": partial(_cifar_resnet, num_blocks=3),
    "cifar_resnet56": partial(_cifar_resnet, num_blocks=9),
    # Nix et al. 2022 (Orbit): 901,770 parameters for 28x28x1 and ten classes.
    "vit_mnist": partial(
        VisionTransformer,
        patch=7,
        dim=64,
        dim_head=64,
        mlp_dim=128,
        dropout=0.0,
        emb_dropout=0.0,
        head_hidden=128,
    ),
    # 53,563,914 parameters for 32x32x3 and ten classes; 9,523,722 with heads of the usual width.
    "vit_cifar": VisionTransformer,
    "vit_cifar_small": partial(VisionTransformer, dim_head=64),
    "cosine": Cosine,
    **LENETS,
    **BNEXTS,
    "tiny_vae": TinyVae,
}
