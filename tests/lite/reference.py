"""The published algorithms in numpy float64 with SVD polar factors, one matrix at a time, from the paper's steps.

Independent of the package on purpose: no function of it is called.
"""

import numpy as np


def msign(x):
    u, sigma, vh = np.linalg.svd(x, full_matrices=False)
    return (u * (sigma > 1e-13 * max(sigma.max(), 1e-300))) @ vh


class MuonLITEReference:
    """Steps 1–6 of Muon-LITE (arXiv:2602.22681)."""

    def __init__(self, w, *, lr, theta=0.95, wd=0.1, chi=2.0, beta1=-0.25, beta2=1.0, r=0.1, orthogonalize=msign):
        self.w, self.m = w.copy(), np.zeros_like(w)
        self.lr, self.theta, self.wd, self.chi, self.beta1, self.beta2 = lr, theta, wd, chi, beta1, beta2
        shorter = min(w.shape)
        self.k = min(int(np.floor(r * shorter)) + 1, shorter - 1)
        self.rho = 1.0 / np.sqrt(shorter)
        self.msign = orthogonalize

    def step(self, g):
        m, n = self.w.shape
        theta = self.theta
        self.m = theta * self.m + (1 - theta) * g
        tilde = self.m + g * (1 - theta) / theta
        o = self.msign(tilde)
        tau = self.rho * np.linalg.norm(tilde) + 1e-9
        s = 0.5 * (o + self.msign(tilde / tau - o))
        self.mask_norm = np.linalg.norm(s)
        factor = 1.05 if self.mask_norm > np.sqrt(self.k) else 0.95
        self.rho = min(1.0, self.rho * factor)
        q = np.eye(n) - s.T @ s
        d = self.msign(g)
        u = o + self.beta1 * d + (self.beta2 - self.beta1) * d @ q
        u = u + (self.chi - 1) * u @ q
        self.w = (
            (1 - self.lr * self.wd) * self.w
            - self.lr * (self.chi - 1) * self.wd * self.w @ q
            - 0.2 * self.lr * np.sqrt(max(m, n)) * u
        )
        return self.w


class AdamWLITEReference:
    """AdamW-LITE for embeddings and norms (arXiv:2602.22681); the published code has a floor of 1e-12."""

    def __init__(self, w, *, lr, chi=4.0, r=0.1, wd=0.1, theta=0.9, b2=0.99, eps=1e-8, floor=0.0):
        self.w, self.m, self.v, self.t = w.copy(), np.zeros_like(w), np.zeros_like(w), 0
        self.lr, self.chi, self.r, self.wd, self.theta, self.b2, self.eps = lr, chi, r, wd, theta, b2, eps
        self.hi, self.lo, self.floor = 1.0, 0.5, floor

    def step(self, g):
        self.t += 1
        self.m = self.theta * self.m + (1 - self.theta) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g**2
        u = (self.m / (1 - self.theta**self.t) * np.sqrt(1 - self.b2**self.t)) / (np.sqrt(self.v) + self.eps)
        mean = self.v.mean()
        if self.r < 1e-5:
            p = np.zeros_like(self.w)
        elif self.r > 1 - 1e-5:
            p = np.ones_like(self.w)
        else:
            p = np.maximum(0, (self.v - self.lo * mean) / ((self.hi - self.lo) * mean + self.floor))
            p[self.v >= self.hi * mean] = 1
            above_hi, above_lo = (self.v >= self.hi * mean).mean(), (self.v >= self.lo * mean).mean()
            self.hi *= 1.05 if above_hi > self.r else 0.95
            self.lo *= 1.05 if above_lo > self.r + min(1 - self.r, 0.1) else 0.95
            self.lo = min(self.lo, 0.95 * self.hi)
        flat = (self.chi - 1) * (1 - p)
        self.w = (1 - self.lr * self.wd) * self.w - self.lr * self.wd * flat * self.w - self.lr * (u + flat * u)
        return self.w


class SOAPReference:
    """SOAP (arXiv:2409.11321, Algorithms 3 and 4): M stays in the original basis, projected again at each step.

    Conventions of its authors' code: the first gradient only sets the basis, columns are sorted at each refresh. With
    ``chi``, ``beta1`` and ``beta2`` it is LITE's Algorithm 1 (arXiv:2602.22681) on SOAP's metric, decay at every step.
    """

    def __init__(self, w, *, lr, wd=0.0, theta=0.95, b2=0.95, eps=1e-8, f=10, chi=1.0, beta1=0.0, beta2=0.0, r=0.1):
        m, n = w.shape
        self.rotates_rows = True
        self.w, self.m, self.v, self.t = w.copy(), np.zeros_like(w), np.zeros_like(w), 0
        self.left, self.right, self.q_left, self.q_right = np.zeros((m, m)), np.zeros((n, n)), None, None
        self.lr, self.wd, self.theta, self.b2, self.eps, self.f = lr, wd, theta, b2, eps, f
        self.chi, self.beta1, self.beta2, self.r, self.hi, self.lo = chi, beta1, beta2, r, 1.0, 0.5

    def step(self, g):
        if self.q_left is not None:
            self._move(g)
        self.left = self.b2 * self.left + (1 - self.b2) * g @ g.T
        self.right = self.b2 * self.right + (1 - self.b2) * g.T @ g
        if self.q_left is None:
            self.q_left, self.q_right = (np.linalg.eigh(x)[1][:, ::-1] for x in (self.left, self.right))
            if not self.rotates_rows:
                self.q_left = np.eye(len(self.w))
        elif self.t % self.f == 0:
            if self.rotates_rows:
                self.q_left, order = self._iterate(self.left, self.q_left)
                self.v = self.v[order]
            self.q_right, order = self._iterate(self.right, self.q_right)
            self.v = self.v[:, order]
        return self.w

    def _move(self, g):
        self.t += 1
        theta = self.theta
        self.m = theta * self.m + (1 - theta) * g
        rotated_g, rotated_m, rotated_w = (self.q_left.T @ x @ self.q_right for x in (g, self.m, self.w))
        self.v = self.b2 * self.v + (1 - self.b2) * rotated_g**2
        p = self._sharp()
        sharp, flat = (rotated_m + (1 - theta) * beta * rotated_g for beta in (self.beta1, self.beta2))
        scale = np.sqrt(1 - self.b2**self.t) / (1 - theta**self.t) / (np.sqrt(self.v) + self.eps)
        u = (p * sharp + self.chi * (1 - p) * flat) * scale + self.wd * (p + self.chi * (1 - p)) * rotated_w
        self.w = self.w - self.lr * self.q_left @ u @ self.q_right.T

    def _sharp(self):
        mean = self.v.mean()
        p = np.clip((self.v - self.lo * mean) / ((self.hi - self.lo) * mean), 0, 1)
        above_hi, above_lo = (self.v > self.hi * mean).mean(), (self.v > self.lo * mean).mean()
        self.hi *= 1.05 if above_hi > self.r else 0.95
        self.lo *= 1.05 if above_lo > self.r + min(1 - self.r, 0.1) else 0.95
        self.lo = min(self.lo, 0.95 * self.hi)
        return p

    @staticmethod
    def _iterate(factor, q):
        order = np.argsort(-np.diag(q.T @ factor @ q), kind="stable")
        return np.linalg.qr(factor @ q[:, order])[0], order
