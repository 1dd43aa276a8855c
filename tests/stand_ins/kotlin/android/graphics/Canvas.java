package android.graphics;

import java.awt.AlphaComposite;
import java.awt.BasicStroke;
import java.awt.Font;
import java.awt.Graphics2D;
import java.awt.RenderingHints;
import java.awt.Shape;
import java.awt.geom.Rectangle2D;

/** Draws on a picture of the JVM what the phone's canvas draws on the screen. */
public class Canvas {
    private final Graphics2D graphics;
    private Shape saved;

    public Canvas(java.awt.image.BufferedImage image) {
        graphics = image.createGraphics();
        graphics.setRenderingHint(RenderingHints.KEY_ANTIALIASING, RenderingHints.VALUE_ANTIALIAS_ON);
        graphics.setRenderingHint(RenderingHints.KEY_TEXT_ANTIALIASING, RenderingHints.VALUE_TEXT_ANTIALIAS_ON);
    }

    public int save() { saved = graphics.getClip(); return 1; }
    public void restore() { graphics.setClip(saved); }
    public boolean clipRect(RectF area) { graphics.clip(rectangle(area)); return true; }

    public void drawBitmap(Bitmap bitmap, Rect source, Rect target, Paint paint) {
        drawBitmap(bitmap, source, new RectF(target.left, target.top, target.right, target.bottom), paint);
    }

    public void drawBitmap(Bitmap bitmap, Rect source, RectF target, Paint paint) {
        graphics.setRenderingHint(RenderingHints.KEY_INTERPOLATION, paint.filters()
            ? RenderingHints.VALUE_INTERPOLATION_BILINEAR : RenderingHints.VALUE_INTERPOLATION_NEAREST_NEIGHBOR);
        Rectangle2D place = rectangle(target);
        graphics.setComposite(AlphaComposite.SrcOver);
        graphics.drawImage(bitmap.image, new java.awt.geom.AffineTransform(
            place.getWidth() / bitmap.getWidth(), 0, 0, place.getHeight() / bitmap.getHeight(),
            place.getX(), place.getY()), null);
    }

    public void drawRect(RectF area, Paint paint) {
        graphics.setColor(new java.awt.Color(paint.getColor(), true));
        graphics.setStroke(new BasicStroke(paint.getStrokeWidth()));
        if (paint.getStyle() == Paint.Style.STROKE) graphics.draw(rectangle(area)); else graphics.fill(rectangle(area));
    }

    public void drawText(String text, float x, float y, Paint paint) {
        graphics.setColor(new java.awt.Color(paint.getColor(), true));
        graphics.setFont(new Font("SansSerif", Font.PLAIN, 1).deriveFont(paint.getTextSize()));
        graphics.drawString(text, x, y);
    }

    private static Rectangle2D rectangle(RectF area) {
        return new Rectangle2D.Float(area.left, area.top, area.right - area.left, area.bottom - area.top);
    }
}
