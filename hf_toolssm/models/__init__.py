"""ToolMamba: configuration, model, recurrent state, and the selective scan that all of them stand on."""
