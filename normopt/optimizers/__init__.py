"""The named optimizers: chains of links, without arithmetic of their own."""

from normopt.optimizers.block_normalized import clipped as clipped
from normopt.optimizers.block_normalized import normalized as normalized
from normopt.optimizers.decoupled import adamw as adamw
from normopt.optimizers.decoupled import nadamw as nadamw
from normopt.optimizers.decoupled import sgdw as sgdw
from normopt.optimizers.layerwise import novograd as novograd
from normopt.optimizers.projected import adamp as adamp
from normopt.optimizers.projected import sgdp as sgdp
from normopt.optimizers.spectral import muon as muon
from normopt.optimizers.spectral import normuon as normuon
from normopt.optimizers.spherical import adamg as adamg
from normopt.optimizers.spherical import adams as adams
from normopt.optimizers.spherical import adamsrt as adamsrt
from normopt.optimizers.spherical import sgdmrt as sgdmrt
from normopt.optimizers.steepest import scion as scion
from normopt.optimizers.turning import hyperball as hyperball
from normopt.optimizers.turning import rotational as rotational
