"""Sites: the same tensor under both addresses."""

from __future__ import annotations

import torch

from iconoclast_tl.architecture.hook_points import bridge_sites, hf_sites
from iconoclast_tl.architecture.sites import WRITERS, Site, hook_name, residual_hook_names
from iconoclast_tl.models.model import Model
from iconoclast_tl.models.twin import Twin, make_twin


def test_both_addresses_of_a_site_hold_the_same_tensor(llama: Model) -> None:
    twin = make_twin(llama)
    assert isinstance(twin, Twin)
    ids = torch.arange(4, 12)[None]
    found: dict[Site, torch.Tensor] = {}
    for site, hooked in hf_sites(llama.hf).items():
        if hooked.on == "output":
            hooked.module.register_forward_hook(lambda m, a, output, site=site: found.__setitem__(site, output))
        else:
            hooked.module.register_forward_pre_hook(lambda m, args, site=site: found.__setitem__(site, args[0]))
    llama.hf(ids)
    _, cache = twin.bridge.run_with_cache(ids)
    assert (
        set(found) == set(bridge_sites(twin.bridge)) == {Site(i, c) for i in range(3) for c in (*WRITERS, "resid_pre")}
    )
    for site, tensor in found.items():
        assert torch.allclose(cache[hook_name(site)], tensor, atol=1e-5), site
    assert not torch.allclose(cache[hook_name(Site(1, "attn_out"))], found[Site(1, "mlp_out")], atol=1e-2)


def test_there_are_as_many_residual_points_as_layers_and_one() -> None:
    assert residual_hook_names(2) == ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"]
