-- Whether a text is UTF-8, after the table of RFC 3629: what ngx.re.find with
-- the option u tells in nginx.

local M = {}

local FORMS = {
  "^[%z\1-\127]+()",
  "^[\194-\223][\128-\191]()",
  "^\224[\160-\191][\128-\191]()",
  "^[\225-\236\238\239][\128-\191][\128-\191]()",
  "^\237[\128-\159][\128-\191]()",
  "^\240[\144-\191][\128-\191][\128-\191]()",
  "^[\241-\243][\128-\191][\128-\191][\128-\191]()",
  "^\244[\128-\143][\128-\191][\128-\191]()",
}


function M.is_valid(text)
  local pos = 1
  while pos <= #text do
    local after
    for _, form in ipairs(FORMS) do
      after = text:match(form, pos)
      if after then
        break
      end
    end
    if not after then
      return false
    end
    pos = after
  end

  return true
end


return M
