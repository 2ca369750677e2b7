--- Paths as Kong's router sees them (RFC 3986, section 6.2.2).
--
-- Percent-encoded octets are decoded unless they stand for a reserved
-- character; dot segments are removed and runs of slashes become one before the
-- router looks. What goes upstream is that path, escaped again. So
-- `/v1/models/../metrics` is routed as `/v1/metrics`, and `%2F` stays `%2F`.

local uri = {}


local is_reserved = {}
for character in ("!*'();:@&=+$,/?%#[]"):gmatch(".") do
  is_reserved[character] = true
end


local function decode_unreserved(path)
  return (path:gsub("%%(%x%x)", function(hex)
    local character = string.char(tonumber(hex, 16))
    if is_reserved[character] then
      return "%" .. hex:upper()
    end
    return character
  end))
end


--- The path without dot segments and empty segments.
function uri.normalize(path)
  path = decode_unreserved(path)
  if path == "" or path == "/" then
    return path
  end

  local kept = {}
  local ends_with_slash = false
  for slash, segment in path:gmatch("(/*)([^/]*)") do
    if segment == "" then
      ends_with_slash = ends_with_slash or slash ~= ""
    elseif segment == "." then
      ends_with_slash = true
    elseif segment == ".." then
      kept[#kept] = nil
      ends_with_slash = true
    else
      kept[#kept + 1] = segment
      ends_with_slash = false
    end
  end

  if #kept == 0 then
    return "/"
  end
  return "/" .. table.concat(kept, "/") .. (ends_with_slash and "/" or "")
end


--- Makes a normalized path fit for a request line; encodes nothing twice.
function uri.escape(path)
  return (path:gsub("[^!#$&'()*+,/:;=?@%[%]%w%-_.~%%]", function(character)
    return ("%%%02X"):format(character:byte())
  end))
end


--- scheme, host, port, path and userinfo of an http(s) URL; nil, err.
function uri.parse(text)
  local scheme, rest = text:match("^(%a[%w+.-]*)://(.*)$")
  if not scheme then
    return nil, "missing scheme in url"
  end
  local authority, path = rest:match("^([^/?#]*)(.*)$")
  local userinfo, address = authority:match("^(.*)@(.*)$")
  local host_name, port = (address or authority):match("^(%[[^%]]+%]):?(%d*)$")
  if not host_name then
    host_name, port = (address or authority):match("^([^:]*):?(%d*)$")
  end
  if not host_name or host_name == "" then
    return nil, "missing host in url"
  end
  return {
    scheme = scheme:lower(),
    host = host_name,
    port = tonumber(port) or (scheme:lower() == "https" and 443 or 80),
    path = path ~= "" and path or "/",
    userinfo = userinfo,
  }
end


return uri
