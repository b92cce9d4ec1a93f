"""What stands behind the web page: components made from models, values made into requests, one renderer for all visitors."""
