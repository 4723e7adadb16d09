"""
Where Procrastinate has its integrations; here they are distributions of their own, which these modules hand over to.
"""
