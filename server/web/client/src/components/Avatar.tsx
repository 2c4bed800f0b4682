/** A coloured circle with the first letter; the name is said beside it. */
export function Avatar({ name, id, large }: { name: string; id: string; large?: boolean }) {
    let hash = 0;
    for (const c of id) hash = (hash * 31 + c.charCodeAt(0)) >>> 0;
    const letter = [...name.replace(/^[@#!]/, "")][0]?.toUpperCase() ?? "?";
    return (
        <span class={`avatar avatar-${hash % 8}${large ? " avatar-large" : ""}`} aria-hidden="true">
            {letter}
        </span>
    );
}
