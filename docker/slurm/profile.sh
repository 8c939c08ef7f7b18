# The login profile: the only place where a session learns of Slurm, as on most sites. So is a banner that scripts have to live with.
cat <<'BANNER'
***************************************************************************
* Welcome to minispider. This is a login node: no computing here, please. *
***************************************************************************
BANNER
export SLURM_CONF=/opt/slurm/etc/slurm.conf
export PATH=/opt/slurm/bin:$PATH
export PICAS_VENV=/opt/picas
