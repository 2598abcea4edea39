-- Give an entry more tags. If one of them was invalidated since its data was read, it goes.
-- KEYS[2]: the entry. ARGV[5...]: the tags. -> epoch, seq, head or false, cause or false, tag or false

open()
local added = rest(5)
local head, its_epoch, its_seq, tags = head_of(KEYS[2])
if not head then
  return { epoch, seq, false, 'absent', false }
end
local cause, tag = why_invalid(its_epoch, its_seq, tags)
if not cause then
  cause, tag = why_invalid(its_epoch, its_seq, added)
  if not cause and softened_by(its_seq, added) then
    cause, tag = 'invalidated', softened_by(its_seq, added)
  end
end
if not cause and end_of_lags(added) then
  cause, tag = 'leased', added[1] -- it lives longer than the lag
end
if cause then
  redis.call('UNLINK', KEYS[2])
  return { epoch, seq, false, cause, tag or false }
end
local has = {}
for _, name in ipairs(tags) do
  has[name] = true
end
for _, name in ipairs(added) do
  if not has[name] then
    has[name] = true
    tags[#tags + 1] = name
  end
end
local packed = cmsgpack.pack(tags)
local whole = redis.call('GET', KEYS[2])
local new = string.sub(head, 1, FIXED - 4) .. struct.pack('<I4', #packed) .. packed
redis.call('SET', KEYS[2], new .. string.sub(whole, #head + 1), 'KEEPTTL')
return { epoch, seq, new, false, false }
