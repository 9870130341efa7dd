
#compdef protego

_protego_completion() {
  eval $(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" _PROTEGO_COMPLETE=complete_zsh protego)
}

compdef _protego_completion protego

