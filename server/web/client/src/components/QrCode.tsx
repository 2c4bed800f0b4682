import qrcode from "qrcode-generator";

/** A QR code, drawn as one path. */
export function QrCode({ text }: { text: string }) {
    const code = qrcode(0, "M");
    code.addData(text);
    code.make();
    const size = code.getModuleCount();
    let path = "";
    for (let y = 0; y < size; y++) {
        for (let x = 0; x < size; x++) if (code.isDark(y, x)) path += `M${x + 2} ${y + 2}h1v1h-1z`;
    }
    return (
        <svg class="qr" viewBox={`0 0 ${size + 4} ${size + 4}`} role="img" aria-label="QR">
            <rect width="100%" height="100%" fill="#fff" />
            <path d={path} fill="#000" />
        </svg>
    );
}
