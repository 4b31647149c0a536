"""Records -> figures for print. Series differ in marker or line style, not only in colour."""
