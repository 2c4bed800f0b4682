/** A coloured circle with the first letter; the name is said beside it. */
export function Avatar({ name, id, tiny }: { name: string; id: string; tiny?: boolean }) {
    let hash = 0;
    for (const c of id) hash = (hash * 31 + c.charCodeAt(0)) >>> 0;
    const letter = [...name.replace(/^[@#!\s]+/, "")][0]?.toUpperCase() ?? "?";
    return (
        <span class={`avatar avatar-${hash % 8}${tiny ? " avatar-tiny" : ""}`} aria-hidden="true">
            {letter}
        </span>
    );
}
