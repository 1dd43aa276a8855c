import android.content.Context
import android.graphics.Canvas
import android.view.MotionEvent
import android.view.View
import java.awt.Color
import java.awt.GradientPaint
import java.awt.image.BufferedImage
import java.io.File
import javax.imageio.ImageIO
import org.lightningprune.digitpad.PadView
import org.lightningprune.digitpad.ReadingView
import org.lightningprune.logic.Area
import org.lightningprune.logic.Box
import org.lightningprune.logic.GrayImage
import org.lightningprune.logic.Reading

private const val WIDTH = 480
private const val HEIGHT = 640

/** Draws the app's own views on pictures of the JVM, side by side in the file named (docs/apps.png); prints colours there. */
fun main(arguments: Array<String>) {
    var drawn: GrayImage? = null
    val pad = PadView(Context()) { drawn = it }
    pad.measure(WIDTH, HEIGHT)
    touch(pad, 0.35 to 0.2, 0.35 to 0.55, 0.7 to 0.55)
    touch(pad, 0.6 to 0.35, 0.6 to 0.85)
    val paper = painted(pad, pad.width, pad.height)
    println("pad ${pad.width} x ${pad.height}, ink ${hex(paper, 168, 200)}, paper ${hex(paper, 20, 20)}, framed ${drawn?.width}")

    // a picture of 4:3 on a view of 3:4: it lies in the middle, 480 x 360, from 140 down to 500
    val view = ReadingView(Context())
    view.measure(WIDTH, HEIGHT)
    val boxes = listOf(
        Box(Area(0.25, 0.25, 0.75, 0.75), 0, "cup", 0.93f), Box(Area(0.6, 0.5, 0.95, 0.95), 3, "spoon", 0.61f)
    )
    view.show(Reading.Boxes(boxes), 640, 480)
    val boxed = painted(view, WIDTH, HEIGHT)
    println("left edge ${hex(boxed, 120, 320)}, inside ${boxed.getRGB(180, 260) == background().getRGB(180, 260)}")

    val classes = IntArray(12 * 12) { if (it % 12 in 3..7 && it / 12 in 4..9) 2 else 0 }
    view.show(Reading.Regions(12, 12, classes, Area(0.0, -0.1667, 1.0, 1.1667)), 640, 480)
    val regions = painted(view, WIDTH, HEIGHT)
    val same = { x: Int, y: Int -> regions.getRGB(x, y) == background().getRGB(x, y) }
    println("background left alone ${same(20, 200)}, region covered ${!same(200, 320)}")
    ImageIO.write(sideBySide(listOf(paper, boxed, regions)), "png", File(arguments[0]))
}

private fun touch(pad: PadView, vararg points: Pair<Double, Double>) {
    for ((i, point) in points.withIndex()) {
        val action = if (i == 0) MotionEvent.ACTION_DOWN else MotionEvent.ACTION_MOVE
        pad.onTouchEvent(event(action, point, pad))
    }
    pad.onTouchEvent(event(MotionEvent.ACTION_UP, points.last(), pad))
}

private fun event(action: Int, point: Pair<Double, Double>, pad: View): MotionEvent =
    MotionEvent.obtain(0, 0, action, (point.first * pad.width).toFloat(), (point.second * pad.height).toFloat(), 0)

private fun background(): BufferedImage {
    val image = BufferedImage(WIDTH, HEIGHT, BufferedImage.TYPE_INT_ARGB)
    val graphics = image.createGraphics()
    graphics.color = Color.BLACK
    graphics.fillRect(0, 0, WIDTH, HEIGHT)
    graphics.paint = GradientPaint(0f, 140f, Color(0x9fb4c7), 0f, 500f, Color(0xe8dcc8))
    graphics.fillRect(0, 140, WIDTH, 360)
    return image
}

private fun sideBySide(images: List<BufferedImage>): BufferedImage {
    val gap = WIDTH / 20
    val whole = BufferedImage(images.size * (WIDTH + gap) + gap, HEIGHT + 2 * gap, BufferedImage.TYPE_INT_RGB)
    val graphics = whole.createGraphics()
    graphics.color = Color(0xf2f2f2)
    graphics.fillRect(0, 0, whole.width, whole.height)
    for ((i, image) in images.withIndex()) {
        graphics.drawImage(image, gap + i * (WIDTH + gap), (whole.height - image.height) / 2, null)
    }
    return whole
}

private fun painted(view: View, width: Int, height: Int): BufferedImage {
    val image = background().getSubimage(0, 0, width, height)
    view.draw(Canvas(image))
    return image
}

private fun hex(image: BufferedImage, x: Int, y: Int): String = "%06x".format(image.getRGB(x, y) and 0xffffff)
