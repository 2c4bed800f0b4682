const paths = {
    back: "M15 5l-7 7 7 7",
    plus: "M12 5v14M5 12h14",
    search: "M11 4a7 7 0 1 1 0 14 7 7 0 0 1 0-14zM16 16l5 5",
    settings: "M4 7h10M18 7h2M4 17h2M10 17h10M14 5v4M8 15v4",
    mic: "M12 3a3 3 0 0 1 3 3v5a3 3 0 0 1-6 0V6a3 3 0 0 1 3-3zM6 11a6 6 0 0 0 12 0M12 17v4",
    inbox: "M4 13v5h16v-5M4 13l3-8h10l3 8M4 13h5l1 2h4l1-2h5",
    send: "M4 12L20 4l-5 16-3-7z",
    attach: "M8 12l6-6a3 3 0 0 1 4 4l-8 8a5 5 0 0 1-7-7l8-8",
    play: "M8 5l11 7-11 7z",
    pause: "M8 5v14M16 5v14",
    lock: "M6 11h12v9H6zM9 11V8a3 3 0 0 1 6 0v3",
    trash: "M5 7h14M9 7V4h6v3M7 7l1 13h8l1-13",
    check: "M5 12l5 5 9-10",
    close: "M6 6l12 12M18 6L6 18",
    people: "M9 11a3 3 0 1 0 0-6 3 3 0 0 0 0 6zM3 20a6 6 0 0 1 12 0M16 5a3 3 0 0 1 0 6M18 14a6 6 0 0 1 3 6",
    more: "M5 12h.01M12 12h.01M19 12h.01",
    reply: "M10 6l-6 6 6 6M4 12h10a6 6 0 0 1 6 6",
    edit: "M4 20h4L19 9l-4-4L4 16z",
    copy: "M9 9h11v11H9zM5 15H4V4h11v1",
    file: "M6 3h8l5 5v13H6zM14 3v5h5",
    down: "M12 5v14M6 13l6 6 6-6",
    bell: "M6 17V11a6 6 0 0 1 12 0v6l2 1H4zM10 21h4",
};

/** A line drawing; what it means is said by the button around it. */
export function Icon({ name }: { name: keyof typeof paths }) {
    return (
        <svg class="icon" viewBox="0 0 24 24" aria-hidden="true">
            <path d={paths[name]} />
        </svg>
    );
}
