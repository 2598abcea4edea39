-- Put an entry in its place, unless it is not valid now, or would replace one with a newer stamp. Its bytes were
-- sent beforehand, as a part: what is large stays out of Lua, and a full server refuses it.
-- KEYS[2]: the entry, KEYS[3]: the part. ARGV[5], [6]: its stamp, [7]: its life in milliseconds, [8]: 1 if it has a
-- stale period, [9...]: its tags. -> epoch, seq, cause or false, tag or false, softened by or false

open()
local its_epoch, its_seq, tags = tonumber(ARGV[5]), tonumber(ARGV[6]), rest(9)
local end_of_lag = end_of_lags(tags)
local cause, tag = why_invalid(its_epoch, its_seq, tags)
if cause == 'leased' then
  settle(tag)
end
local life, softener = math.min(tonumber(ARGV[7]), end_of_lag or math.huge), nil
if not cause and life <= 0 then
  cause = 'expired'
end
if not cause then
  softener = softened_by(its_seq, tags)
  if softener and ARGV[8] ~= '1' then
    cause, tag = 'invalidated', softener
  end
end
if not cause then
  local _, old_epoch, old_seq = head_of(KEYS[2])
  if old_epoch == epoch and old_seq > its_seq and old_seq <= seq then
    cause = 'superseded'
  end
end
if not cause then
  local moved = redis.pcall('RENAME', KEYS[3], KEYS[2])
  if moved.err then
    cause = 'no part'
  else
    redis.call('PEXPIRE', KEYS[2], life)
  end
else
  redis.call('UNLINK', KEYS[3])
end
return { epoch, seq, cause or false, tag or false, softener or false }
