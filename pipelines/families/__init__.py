"""Model families, one module each: every module here that defines `FAMILY` is one."""
