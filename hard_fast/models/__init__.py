"""Networks: the papers' small nets, timm's zoo, a user's own, and taps on their inner layers."""
