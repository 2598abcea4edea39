-- What is to be known of entries whose bodies are fetched beside this.
-- KEYS[2...]: the entries. ARGV[5]: "despite" if leases that have not ended do not count. -> epoch, seq, soft, then for each {head, cause, tag, softened by}; false for none of ours.

open()
local reply, despite = { epoch, seq, soft }, ARGV[5] == 'despite'
for i = 2, #KEYS do
  local head, its_epoch, its_seq, tags = head_of(KEYS[i])
  if head then
    local cause, tag = why_invalid(its_epoch, its_seq, tags, despite)
    reply[#reply + 1] = { head, cause or false, tag or false, not cause and softened_by(its_seq, tags) or false }
  else
    reply[#reply + 1] = false
  end
end
return reply
