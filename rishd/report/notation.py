"""Notation of the report, in reStructuredText."""

NOTATION = r"""
The flow RISHD in phase space, with momentum :math:`m` and gradient :math:`g = \nabla f(w)`:

.. math:: \dot w = -\eta F(w)^{-1}(m + \beta g), \qquad \dot m = -\alpha m + g + R .

LITE's update rule, semi-implicit Euler with step 1 and :math:`R = 0`:

.. math::

   m_k &= (1 - \alpha)\,m_{k-1} + g_k, \\
   u_k &= PF^{-1}(m_k + \beta_1 g_k) + \chi\,QF^{-1}(m_k + \beta_2 g_k), \\
   w_{k+1} &= w_k - \eta\,u_k .

- :math:`w` parameters, :math:`f` objective with infimum :math:`f_*` and minimiser :math:`w_*`, :math:`H = \nabla^2f`
- :math:`F(w)` metric, the preconditioner; :math:`\lVert v\rVert_F^2 = v^\top Fv`; :math:`R` Riemannian correction, zero
  if :math:`F` is constant
- :math:`\eta` learning rate, :math:`\alpha` damping of the momentum, :math:`\beta` Hessian damping relative to a
  momentum that sums gradients
- :math:`P` projector on the sharp directions, :math:`Q = I - P` on the flat ones; :math:`\beta_1`, :math:`\beta_2`
  their Hessian damping, :math:`\chi` the factor on the flat ones' learning rate
- :math:`A = F^{-1}(P + \chi Q)` and :math:`B = \beta_1P + \beta_2Q`
- :math:`\kappa = \eta\lambda a`, curvature of a direction in units of the step, with eigenvalues :math:`\lambda` of
  :math:`H` and :math:`a` of :math:`A`
"""
