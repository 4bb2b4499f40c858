"""Target-only verification: what is accepted of the draft's most likely tokens."""

import pytest
import torch
from enumeration import node_law, optimum_of_drafts, random_laws, selection_law
from test_k_seq import NODES, on_counts, on_nodes

from warpdraft.verifiers.target_only import TargetOnly

RULE = TargetOnly()


@on_counts
@on_nodes
def test_acceptance_is_the_targets_mass_on_the_drafts(node, count):
    law, acceptance = node_law(RULE, *node, count)
    torch.testing.assert_close(law, node[0], rtol=0, atol=0)
    target, draft = node
    expected = RULE.expected_acceptance(target[None], draft[None], count)
    assert float(expected) == pytest.approx(acceptance, abs=1e-12)
    # nothing is random in such drafts: no rule accepts more of them
    assert acceptance == pytest.approx(optimum_of_drafts(RULE, target, draft, count), abs=1e-12)


def test_tokens_that_the_draft_never_gives_are_no_candidates():
    target = random_laws(1, 4, seed=1)
    draft = torch.tensor([[0.0, 0.7, 0.3, 0.0]], dtype=torch.float64)
    for count in (2, 3, 4, 7):
        accepted = RULE.expected_acceptance(target, draft, count)
        assert float(accepted) == pytest.approx(float(target[0, 1:3].sum()))


def test_select_draws_from_the_target():
    target, draft = NODES["random"]
    law = selection_law(RULE, target, draft, torch.tensor([2, 0]), {}, depth=1)
    torch.testing.assert_close(law, target)
