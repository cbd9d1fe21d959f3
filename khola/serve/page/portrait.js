// Pictures of characters, fetched with the key like everything else and kept while the page is open.
import { useEffect, useState } from "./lib.js";
import { blob } from "./net.js";

const kept = new Map();

export function usePortrait(id, version = 0) {
  const name = `${id}/${version}`;
  const [address, setAddress] = useState(kept.get(name) ?? "");
  useEffect(() => {
    if (!id) return setAddress("");
    if (kept.has(name)) return setAddress(kept.get(name));
    let here = true;
    blob(`/page/characters/${id}/portrait`).then((found) => {
      kept.set(name, URL.createObjectURL(found));
      if (here) setAddress(kept.get(name));
    }, () => {}); // a picture that is missing leaves its place to the letter
    return () => (here = false);
  }, [name]);
  return address;
}
